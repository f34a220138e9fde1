//! Progress of a run on standard error: a bar on a terminal, a line now and then elsewhere.
//!
//! What counts is what the log has acknowledged. When it has been silent for a while although
//! records are on their way, that is said, so that nobody takes a stall for slowness.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use shoal_runtime::clock::Stopwatch;

use super::{Summary, count};

/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Time between two looks that change the bar.
const DRAW_EVERY: Duration = Duration::from_millis(200);
/// Time over which the rate is taken.
const RATE_OVER: Duration = Duration::from_secs(2);
/// Silence of the log after which it is said.
const SILENCE: Duration = Duration::from_secs(5);

enum Form {
    Silent,
    Bar(ProgressBar),
    Lines { last: Duration },
}

pub(super) struct Progress {
    form: Form,
    watch: Stopwatch,
    total: Option<u64>,
    drawn: Duration,
    /// When the count of acknowledged records last rose, and to what.
    heard: (Duration, u64),
    /// A moment past, with records and bytes then: what the rate is taken from.
    since: (Duration, u64, u64),
    rate: (f64, f64),
}

impl Progress {
    pub(super) fn new(shown: bool, total: Option<u64>) -> Self {
        let form = match (shown, io::stderr().is_terminal()) {
            (false, _) => Form::Silent,
            (true, true) => Form::Bar(bar(total)),
            (true, false) => Form::Lines {
                last: Duration::ZERO,
            },
        };
        Self {
            form,
            watch: Stopwatch::start(),
            total,
            drawn: Duration::ZERO,
            heard: (Duration::ZERO, 0),
            since: (Duration::ZERO, 0, 0),
            rate: (0.0, 0.0),
        }
    }

    /// Draws, if it is time.
    pub(super) fn look(&mut self, summary: &Summary, outstanding: usize) {
        if matches!(self.form, Form::Silent) {
            return;
        }
        let now = self.watch.elapsed();
        if summary.records != self.heard.1 || outstanding == 0 {
            self.heard = (now, summary.records);
        }
        if now.saturating_sub(self.drawn) < DRAW_EVERY {
            return;
        }
        self.drawn = now;
        let over = now.saturating_sub(self.since.0);
        if over >= RATE_OVER || self.rate == (0.0, 0.0) {
            let seconds = over.as_secs_f64().max(0.001);
            let records = summary.records.saturating_sub(self.since.1);
            let bytes = summary.bytes.saturating_sub(self.since.2);
            self.rate = (count(records) / seconds, count(bytes) / seconds);
            self.since = (now, summary.records, summary.bytes);
        }
        let silence = now.saturating_sub(self.heard.0);
        let text = self.text(summary, outstanding, silence);
        match &mut self.form {
            Form::Silent => {}
            Form::Bar(bar) => {
                bar.set_position(summary.records);
                bar.set_message(text);
            }
            Form::Lines { last } => {
                if now.saturating_sub(*last) >= LINE_EVERY {
                    *last = now;
                    say(&format!(
                        "published {} records{}, {text}",
                        HumanCount(summary.records),
                        of(self.total)
                    ));
                }
            }
        }
    }

    fn text(&self, summary: &Summary, outstanding: usize, silence: Duration) -> String {
        let mut text = rates(self.rate.0, self.rate.1);
        if summary.skipped > 0 {
            text += &format!(
                ", {} faulty records passed over",
                HumanCount(summary.skipped)
            );
        }
        if silence >= SILENCE {
            text += &format!(
                ", waiting for Kafka: {outstanding} records unacknowledged for {} s",
                silence.as_secs()
            );
        }
        text
    }

    /// Takes the bar away; a run without a terminal gets its last line.
    pub(super) fn end(self, summary: &Summary) {
        match self.form {
            Form::Silent => {}
            Form::Bar(bar) => bar.finish_and_clear(),
            Form::Lines { .. } => {
                let seconds = summary.seconds.max(0.001);
                say(&format!(
                    "published {} records{} in {:.1} s, {}",
                    HumanCount(summary.records),
                    of(self.total),
                    summary.seconds,
                    rates(
                        count(summary.records) / seconds,
                        count(summary.bytes) / seconds
                    )
                ));
            }
        }
    }
}

fn rates(records: f64, bytes: f64) -> String {
    const MIB: f64 = 1_048_576.0;
    format!("{records:.0} records/s, {:.1} MiB/s", bytes / MIB)
}

fn of(total: Option<u64>) -> String {
    total.map_or(String::new(), |total| format!(" of {}", HumanCount(total)))
}

fn bar(total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (
            ProgressBar::new(total),
            "{bar:30} {human_pos}/{human_len} records, {msg}, {eta} left",
        ),
        None => (
            ProgressBar::new_spinner(),
            "{spinner} {human_pos} records, {msg}",
        ),
    };
    let style = ProgressStyle::with_template(template);
    bar.set_style(style.expect("the template is a constant and parses"));
    bar.set_draw_target(ProgressDrawTarget::stderr());
    bar
}

/// Standard error may be closed, which is no reason to stop publishing.
fn say(line: &str) {
    let _closed = writeln!(io::stderr(), "{line}");
}
