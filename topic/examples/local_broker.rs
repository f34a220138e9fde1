//! Runs a real Kafka as a child until standard input ends, or until it is killed itself.
//!
//! Run with `cargo run -p shoal-topic --example local_broker -- FOLDER`. Prints the broker's
//! address and its pid. However this program ends, the broker ends with it.

use std::{
    env,
    error::Error,
    ffi::OsString,
    io::{self, Read, Write},
};

use shoal_topic::broker::{BrokerOptions, LocalBroker, exec_as_child};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let (Some(first), rest) = (arguments.first(), arguments.get(1..).unwrap_or_default()) else {
        return Err("usage: local_broker FOLDER".into());
    };
    if first == "child-exec" {
        return Err(exec_as_child(rest).into());
    }
    let broker = LocalBroker::start(&BrokerOptions {
        launcher: Some(vec![env::current_exe()?.into(), "child-exec".into()]),
        ..BrokerOptions::new(first)
    })?;
    let mut out = io::stdout().lock();
    writeln!(out, "{} {}", broker.bootstrap(), broker.pid())?;
    out.flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    broker.stop();
    Ok(())
}
