//! Whether a change may still be taken back: decided once, by whoever comes first.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

const OPEN: u8 = 0;
const SENT: u8 = 1;
const GIVEN_UP: u8 = 2;

/// Shared by who makes a change and who waits for it.
#[derive(Clone, Debug, Default)]
pub(super) struct Ticket(Arc<AtomicU8>);

impl Ticket {
    /// Claims the right to send; false if it was given up.
    pub(super) fn send(&self) -> bool {
        self.decide(SENT)
    }

    /// Gives the change up; false if it may have been sent.
    pub(super) fn give_up(&self) -> bool {
        self.decide(GIVEN_UP)
    }

    fn decide(&self, wanted: u8) -> bool {
        let order = (Ordering::AcqRel, Ordering::Acquire);
        match self.0.compare_exchange(OPEN, wanted, order.0, order.1) {
            Ok(_) => true,
            Err(decided) => decided == wanted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Ticket;

    #[test]
    fn the_first_to_decide_decides_for_both() {
        let given_up = Ticket::default();
        assert!(given_up.give_up() && given_up.give_up());
        assert!(!given_up.send());
        let sent = Ticket::default();
        assert!(sent.send() && sent.send());
        assert!(!sent.clone().give_up());
    }
}
