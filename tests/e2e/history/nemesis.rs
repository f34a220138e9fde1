//! Kills, stops and restarts of processes at random, and healing.

use std::{thread, time::Duration};

use shoal_runtime::clock::Stopwatch;

use super::recorder::Recorder;
use crate::harness::{
    role::{Role, Settings},
    seed::Random,
};

/// How long a trouble lasts at most.
const LONGEST: Duration = Duration::from_millis(1500);
/// How long all is left alone between two at most.
const REST: Duration = Duration::from_millis(1200);
/// Of so many stops one is longer than a group waits for its members.
const LONG_OF: u64 = 5;
const LONG: Duration = Duration::from_secs(8);

/// The processes of a run; one that is down has no role.
pub(super) struct Cast {
    settings: Vec<Settings>,
    roles: Vec<Option<Role>>,
}

impl Cast {
    /// Starts them all, the ones after the others.
    pub(super) fn start(settings: Vec<Settings>) -> Self {
        let roles = settings.iter().map(|one| Some(one.start()));
        Self {
            roles: roles.collect(),
            settings,
        }
    }

    /// The running role of a name.
    pub(super) fn role(&self, name: &str) -> &Role {
        let running = self.roles.iter().flatten();
        let mut named = running.filter(|role| role.settings.name == name);
        named.next().unwrap()
    }

    /// Waits until each is ready.
    pub(super) fn is_ready(&mut self) {
        for role in self.roles.iter_mut().flatten() {
            role.is_ready();
        }
    }

    /// Ends one in good order.
    pub(super) fn terminate(&mut self, name: &str) {
        let named = |role: &Role| role.settings.name == name;
        let mut slots = self.roles.iter_mut();
        let slot = slots.find(|slot| slot.as_ref().is_some_and(named)).unwrap();
        let role = slot.take().unwrap();
        role.had_no_errors(&[]);
        role.child.terminate();
    }

    /// Troubles one or two at a time, until the time is over; then all run.
    pub(super) fn trouble(&mut self, recorder: &Recorder, random: &mut Random, time: Duration) {
        let watch = Stopwatch::start();
        while watch.elapsed() < time {
            let first = self.choose(random);
            let mut harmed = vec![(first, self.harm(first, recorder, random))];
            if random.below(4) == 0 {
                let second = self.choose(random);
                if second != first {
                    harmed.push((second, self.harm(second, recorder, random)));
                }
            }
            let is_long = |harm: &(usize, Harm)| harm.1 == Harm::Stopped;
            let lasts = match harmed.iter().any(is_long) && random.below(LONG_OF) == 0 {
                true => LONG,
                false => random.moment(LONGEST),
            };
            pass(lasts);
            for (at, harm) in harmed {
                self.heal(at, harm, recorder);
            }
            pass(random.moment(REST));
        }
    }

    fn choose(&self, random: &mut Random) -> usize {
        let count = u64::try_from(self.roles.len()).unwrap();
        usize::try_from(random.below(count)).unwrap()
    }

    fn harm(&mut self, at: usize, recorder: &Recorder, random: &mut Random) -> Harm {
        let slot = &mut self.roles[at];
        let name = self.settings[at].name.clone();
        match random.below(10) {
            0..5 => {
                recorder.trouble(format!("kill {name}"));
                let role = slot.take().unwrap();
                role.had_no_errors(&[]);
                role.child.kill();
                Harm::Down
            }
            5..8 => {
                recorder.trouble(format!("stop {name}"));
                slot.as_ref().unwrap().child.pause();
                Harm::Stopped
            }
            _ => {
                recorder.trouble(format!("end {name}"));
                let role = slot.take().unwrap();
                role.had_no_errors(&[]);
                role.child.terminate();
                Harm::Down
            }
        }
    }

    fn heal(&mut self, at: usize, harm: Harm, recorder: &Recorder) {
        let settings = &self.settings[at];
        recorder.trouble(format!("heal {}", settings.name));
        match harm {
            Harm::Down => self.roles[at] = Some(settings.launch()),
            Harm::Stopped => self.roles[at].as_ref().unwrap().child.resume(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Harm {
    Down,
    Stopped,
}

/// Lets clients work for a while.
pub(super) fn pass(time: Duration) {
    let watch = Stopwatch::start();
    while watch.elapsed() < time {
        thread::park_timeout(time.saturating_sub(watch.elapsed()));
    }
}
