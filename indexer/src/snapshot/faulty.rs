//! A store that fails when told to, for tests.

use std::{
    fs::File,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream};

use crate::snapshot::store::{Answer, Cause, Chunks, Listed, Put, Store, StoreError};

/// What is to go wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// The next so many calls of this kind are not answered.
    Unreachable(&'static str, u32),
    /// Of this kind, the next is done, but its answer is lost.
    AnswerLost(&'static str),
    /// After so many calls of this kind every one fails, as if the process had been killed.
    KilledAfter(&'static str, u32),
    /// Reads break off in the middle, so often.
    BreaksOff(u32),
}

/// Passes calls on, but for what is planned.
#[derive(Debug)]
pub(super) struct Faulty {
    inner: Arc<dyn Store>,
    plan: Mutex<Option<Plan>>,
    calls: Mutex<Vec<(&'static str, String)>>,
}

impl Faulty {
    pub(super) fn over(inner: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            plan: Mutex::default(),
            calls: Mutex::default(),
        })
    }

    pub(super) fn plan(&self, plan: Plan) {
        *self.plan.lock().unwrap() = Some(plan);
    }

    /// Objects that calls of this kind were about, since this was last asked.
    pub(super) fn calls(&self, doing: &str) -> Vec<String> {
        let mut calls = self.calls.lock().unwrap();
        let of = calls.iter().filter(|(kind, _)| *kind == doing);
        let of = of.map(|(_, path)| path.clone()).collect();
        calls.retain(|(kind, _)| *kind != doing);
        of
    }

    fn error(&self, doing: &'static str, path: &str, cause: Cause) -> StoreError {
        StoreError {
            store: self.name().to_owned(),
            object: path.to_owned(),
            doing,
            cause,
            source: "planted".into(),
        }
    }

    /// Whether the call fails before it is done; or whether its answer is lost.
    fn meet(&self, doing: &'static str, path: &str) -> Result<bool, StoreError> {
        self.calls.lock().unwrap().push((doing, path.to_owned()));
        let mut plan = self.plan.lock().unwrap();
        match &mut *plan {
            Some(Plan::Unreachable(what, left)) if *what == doing && *left > 0 => {
                *left -= 1;
                Err(self.error(doing, path, Cause::Unreachable))
            }
            Some(Plan::AnswerLost(what)) if *what == doing => {
                *plan = None;
                Ok(true)
            }
            Some(Plan::KilledAfter(what, left)) if *what == doing => {
                if *left == 0 {
                    return Err(self.error(doing, path, Cause::Denied));
                }
                *left -= 1;
                Ok(false)
            }
            _ => Ok(false),
        }
    }
}

macro_rules! pass {
    ($self:ident, $doing:literal, $path:ident, $call:expr) => {
        async move {
            let lost = $self.meet($doing, $path)?;
            let answer = $call.await;
            if lost {
                return Err($self.error($doing, $path, Cause::Unreachable));
            }
            answer
        }
        .boxed()
    };
}

impl Store for Faulty {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn create<'a>(&'a self, path: &'a str, content: Bytes) -> Answer<'a, Put> {
        pass!(self, "create", path, self.inner.create(path, content))
    }

    fn upload<'a>(&'a self, path: &'a str, file: Arc<File>, bytes: u64) -> Answer<'a, ()> {
        pass!(self, "upload", path, self.inner.upload(path, file, bytes))
    }

    fn read<'a>(&'a self, path: &'a str) -> Answer<'a, Chunks> {
        async move {
            self.meet("read", path)?;
            let chunks = self.inner.read(path).await?;
            let mut plan = self.plan.lock().unwrap();
            match &mut *plan {
                Some(Plan::BreaksOff(left)) if *left > 0 => {
                    *left -= 1;
                    let broken = self.error("read", path, Cause::Unreachable);
                    let first = chunks.take(1);
                    Ok(first.chain(stream::iter([Err(broken)])).boxed())
                }
                _ => Ok(chunks),
            }
        }
        .boxed()
    }

    fn list<'a>(&'a self, folder: &'a str) -> Answer<'a, Vec<Listed>> {
        pass!(self, "list", folder, self.inner.list(folder))
    }

    fn folders<'a>(&'a self, folder: &'a str) -> Answer<'a, Vec<String>> {
        pass!(self, "folders", folder, self.inner.folders(folder))
    }

    fn delete<'a>(&'a self, path: &'a str) -> Answer<'a, ()> {
        pass!(self, "delete", path, self.inner.delete(path))
    }
}
