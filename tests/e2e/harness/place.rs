//! Ports of 127.0.0.1 that nobody uses: a role has to be told its own before it runs.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process,
    sync::{Mutex, OnceLock},
};

use super::seed::Random;

/// Below what the kernel hands out by itself, so that no outgoing connection takes one meanwhile.
const FIRST: u16 = 15_000;
const COUNT: u64 = 15_000;

/// An address that is free now, and never given twice by this process.
pub(crate) fn free() -> SocketAddr {
    static GIVEN: OnceLock<Mutex<(Random, BTreeSet<u16>)>> = OnceLock::new();
    let given =
        GIVEN.get_or_init(|| Mutex::new((Random::of(process::id().into()), BTreeSet::new())));
    let (random, taken) = &mut *given.lock().unwrap();
    loop {
        let port = FIRST + u16::try_from(random.below(COUNT)).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if taken.insert(port) && TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
