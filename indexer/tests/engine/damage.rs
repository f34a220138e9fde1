//! Damage to the files of a sealed segment, each of them in turn: opening notices some of it, the look at whole files
//! beside everything else the rest.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use shoal_indexer::segment::seal::FILES;
use shoal_runtime::eventually;
use shoal_schemas::{FieldKind, Payload, Value};

use crate::{
    bend, files_below, sealed,
    world::{DEADLINE, World},
};

/// What the file of ended rows is called, but for its number.
const MASK: &str = "mask-";

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// A file of a sealed segment whose name begins so, and that holds something.
fn file_of(folder: &Path, begin: &str) -> PathBuf {
    let files = files_below(&folder.join("segments"), "").into_iter();
    let mut files = files.filter(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with(begin) && path.metadata().unwrap().len() > 0
    });
    files.next().unwrap_or_else(|| panic!("no `{begin}`"))
}

#[test]
fn a_bit_turned_in_any_file_of_a_sealed_segment_is_noticed_and_the_shard_rebuilt() {
    let mut world = World::new();
    let kind = FieldKind::Integer;
    world.collection.fields = BTreeMap::from([("parity".to_owned(), kind)]);
    let whole = world.folder.path().join("live");
    let live = world.open();
    let upsert = |id: u64| {
        let parity = Value::Integer((id % 2) as i64);
        let payload = Payload(BTreeMap::from([("parity".to_owned(), parity)]));
        world.upsert_with(&format!("id-{id}"), id, payload);
    };
    (0..600).for_each(upsert);
    // Rows of the first segment end, which the second one has entries of.
    for id in 0..40 {
        world.delete(&format!("id-{id}"));
    }
    (600..1100).for_each(upsert);
    let before = world.caught_up(&live);
    sealed(&live, &whole);
    live.close();

    let damaged = FILES.into_iter().chain([MASK]).map(|name| {
        let folder = world.folder.path().join(name);
        copy(&whole, &folder);
        bend(&file_of(&folder, name));
        (name, world.open_in(&folder))
    });
    let damaged: Vec<_> = damaged.collect();
    let rebuilt = damaged.into_iter().map(|(name, live)| {
        let aside = world.folder.path().join(format!("{name}.aside-0"));
        eventually(DEADLINE, "the shard gives up its folder", || {
            aside.exists().then_some(())
        });
        live.close();
        assert!(aside.join("segments").exists(), "nothing is thrown away");
        (name, world.open_in(&world.folder.path().join(name)))
    });
    let rebuilt: Vec<_> = rebuilt.collect();
    for (name, live) in rebuilt {
        let after = world.caught_up(&live);
        let (found, wanted) = ((after.digest, after.points), (before.digest, before.points));
        assert_eq!(found, wanted, "{name}");
        assert_eq!(live.nearest(700, 1), ["id-700"], "{name}");
        live.close();
        let again = world.folder.path().join(format!("{name}.aside-1"));
        assert!(!again.exists(), "{name}: what was rebuilt is given up, too");
    }
    // The folder that all of them are copies of is of use.
    let live = world.open();
    assert_eq!(world.caught_up(&live), before);
    live.close();
    assert!(!world.folder.path().join("live.aside-0").exists());
}
