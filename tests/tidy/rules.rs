//! The rules: each a function from one file's path and text to its faults.
//!
//! A rule that cannot fail proves nothing, so each has a test with a planted fault. Words that a rule refuses are spelt
//! in pieces here, because this file is checked too.

use std::fmt;
use std::path::Path;

/// Longest Rust file, tests included. One idea a file: a longer one is a sign of two.
pub(crate) const LINES_LIMIT: usize = 600;

/// Files that may be longer, each with the reason why splitting it would make it worse.
pub(crate) const LONG_FILES: &[(&str, &str)] = &[];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &[
    "utils", "util", "helpers", "helper", "common", "misc", "types",
];

/// Crates whose types stay in one place, and that place.
const FOREIGN_CRATES: &[(&str, &str)] = &[
    ("rdkafka", "topic/src/kafka/"),
    ("usearch", "tests/bench/rig/bare_index.rs"),
    ("numkong", "indexer/src/index/kernel.rs"),
    ("sled", "indexer/src/catalog/"),
    ("schema_registry_converter", "topic/src/registry.rs"),
    ("object_store", "indexer/src/snapshot/bucket.rs"),
    ("redis", "query/src/cache/remote.rs"),
];

/// A broken rule: the line, counted from 1, and what is wrong there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) line: usize,
    pub(crate) what: String,
}

impl Fault {
    fn new(line: usize, what: impl Into<String>) -> Self {
        Self {
            line,
            what: what.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.line, self.what)
    }
}

/// A rule over one file: its path, with `/`, from the root of the repository, and its text.
pub(crate) type Rule = fn(&str, &str) -> Vec<Fault>;

/// All rules that look at one file at a time.
pub(crate) const RULES: &[Rule] = &[
    opens_with_a_module_doc,
    is_not_too_long,
    has_a_telling_name,
    has_no_trailing_whitespace,
    skips_no_test,
    sleeps_in_no_test,
    gives_a_reason_for_what_is_left,
    names_no_registry_host,
    names_no_home_folder,
    keeps_foreign_crates_in_their_place,
];

fn is_rust(path: &str) -> bool {
    path.ends_with(".rs")
}

/// Every Rust file says first what it holds.
fn opens_with_a_module_doc(path: &str, text: &str) -> Vec<Fault> {
    if is_rust(path) && !text.starts_with("//!") {
        return vec![Fault::new(
            1,
            "does not open with a `//!` line on what it holds and why",
        )];
    }
    Vec::new()
}

fn is_not_too_long(path: &str, text: &str) -> Vec<Fault> {
    let lines = text.lines().count();
    let excepted = LONG_FILES.iter().any(|(long, _)| *long == path);
    if is_rust(path) && lines > LINES_LIMIT && !excepted {
        return vec![Fault::new(
            lines,
            format!("has {lines} lines, the limit is {LINES_LIMIT}"),
        )];
    }
    Vec::new()
}

fn has_a_telling_name(path: &str, text: &str) -> Vec<Fault> {
    let mut faults = Vec::new();
    for part in path.split('/') {
        let stem = part.split('.').next().unwrap_or(part);
        if EMPTY_NAMES.contains(&stem) {
            faults.push(Fault::new(
                1,
                format!("`{part}` is a name that says nothing"),
            ));
        }
    }
    if is_rust(path) {
        for (line, code) in numbered(text) {
            let item = code
                .trim_start()
                .trim_start_matches("pub(crate) ")
                .trim_start_matches("pub ");
            let Some(rest) = item.strip_prefix("mod ") else {
                continue;
            };
            let name = rest.split([' ', ';', '{']).next().unwrap_or_default();
            if EMPTY_NAMES.contains(&name) {
                faults.push(Fault::new(
                    line,
                    format!("module `{name}` has a name that says nothing"),
                ));
            }
        }
    }
    faults
}

fn has_no_trailing_whitespace(_path: &str, text: &str) -> Vec<Fault> {
    text.split('\n')
        .enumerate()
        .filter(|(_, line)| line.ends_with([' ', '\t', '\r']))
        .map(|(index, _)| Fault::new(index + 1, "ends in whitespace"))
        .collect()
}

/// A test that is skipped or that passes by panicking proves little.
fn skips_no_test(path: &str, text: &str) -> Vec<Fault> {
    if !is_rust(path) {
        return Vec::new();
    }
    let refused = [concat!("#[ign", "ore"), concat!("#[should", "_panic")];
    faults_where(text, |line| {
        let found = refused
            .iter()
            .find(|word| line.trim_start().starts_with(*word))?;
        Some(format!(
            "`{found}`: run the test, and assert on the error it gets"
        ))
    })
}

/// Tests wait for a state, never for a time.
fn sleeps_in_no_test(path: &str, text: &str) -> Vec<Fault> {
    if !is_rust(path) {
        return Vec::new();
    }
    let refused = [concat!("thread::sl", "eep"), concat!("time::sl", "eep")];
    let first = first_test_line(path, text);
    let mut faults = faults_where(text, |line| {
        let found = refused.iter().find(|word| line.contains(*word))?;
        Some(format!(
            "`{found}` in a test: wait for a state with `shoal_runtime::eventually`"
        ))
    });
    faults.retain(|fault| first.is_some_and(|first| fault.line >= first));
    faults
}

/// Where the test code of a file begins: at its top in a test file, else at its inline test module.
fn first_test_line(path: &str, text: &str) -> Option<usize> {
    if path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("_tests.rs") {
        return Some(1);
    }
    let lines: Vec<&str> = text.lines().collect();
    let marked = lines
        .iter()
        .enumerate()
        .filter(|(_, line)| line.trim() == "#[cfg(test)]");
    marked
        .filter(|(index, _)| {
            let item = lines[index + 1..]
                .iter()
                .find(|line| !line.trim_start().starts_with("#["));
            item.is_some_and(|line| line.starts_with("mod ") && line.trim_end().ends_with('{'))
        })
        .map(|(index, _)| index + 1)
        .next()
}

/// What is left to do says why, after a colon, in more than a word.
fn gives_a_reason_for_what_is_left(_path: &str, text: &str) -> Vec<Fault> {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME")];
    faults_where(text, |line| {
        let (mark, after) = marks
            .iter()
            .find_map(|mark| Some((*mark, line.split_once(mark)?.1)))?;
        let reason = after.strip_prefix(':').map(str::trim).unwrap_or_default();
        let is_given = reason.split_whitespace().count() >= 4;
        (!is_given)
            .then(|| format!("`{mark}` without its reason: write `{mark}: why it is not done now`"))
    })
}

/// Which registry a package client asks is the machine's business.
fn names_no_registry_host(_path: &str, text: &str) -> Vec<Fault> {
    let hosts = [
        concat!("crates", ".io"),
        concat!("py", "pi.org"),
        concat!("files.python", "hosted.org"),
        concat!("repo.maven.", "apache.org"),
        concat!("repo1.", "maven.org"),
        concat!("registry.", "npmjs.org"),
        concat!("proxy.", "golang.org"),
        concat!("deb.", "debian.org"),
    ];
    faults_where(text, |line| {
        let found = hosts.iter().find(|host| line.contains(*host))?;
        Some(format!("names the package registry `{found}`"))
    })
}

/// A path of one person's machine means nothing on another.
fn names_no_home_folder(_path: &str, text: &str) -> Vec<Fault> {
    let homes = [
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("/Us", "ers/"),
        concat!("/wo", "rk/"),
    ];
    faults_where(text, |line| {
        let found = homes.iter().find(|home| {
            line.match_indices(*home).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                before.is_none_or(|c| !c.is_alphanumeric() && !"._-/}~*)>".contains(c))
            })
        })?;
        Some(format!("names a folder of one machine (`{found}`)"))
    })
}

/// A foreign crate's types show in one place only, so that it can be replaced there. Tests, examples and benchmarks may
/// use it bare: they are what it is compared with.
fn keeps_foreign_crates_in_their_place(path: &str, text: &str) -> Vec<Fault> {
    let is_product = path.starts_with("src/") || path.contains("/src/");
    if !is_rust(path) || !is_product {
        return Vec::new();
    }
    faults_where(text, |line| {
        let (name, place) = FOREIGN_CRATES.iter().find(|(name, place)| {
            !path.starts_with(place)
                && line.match_indices(name).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    let is_word =
                        before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':');
                    !is_word && line[at + name.len()..].starts_with("::")
                })
        })?;
        (!is_comment(line)).then(|| format!("uses `{name}`, whose place is `{place}`"))
    })
}

/// Every metric constant of a crate's `metrics.rs` stands in the operators' list.
pub(crate) fn metrics_are_listed(metrics: &str, listed: &str) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut declared = None;
    for (line, code) in numbered(metrics) {
        if code.contains("const ") && code.contains("&str") {
            declared = Some(line);
        }
        let (Some(at), Some((_, rest))) = (declared, code.split_once('"')) else {
            continue;
        };
        let name = rest.split('"').next().unwrap_or_default();
        if !is_comment(code) && !listed.contains(&format!("`{name}`")) {
            faults.push(Fault::new(
                at,
                format!("metric `{name}` is not listed in docs/metrics.md"),
            ));
        }
        declared = None;
    }
    faults
}

/// Every link of a Markdown file to a file of the repository leads somewhere.
pub(crate) fn links_lead_somewhere(
    path: &str,
    text: &str,
    exists: impl Fn(&Path) -> bool,
) -> Vec<Fault> {
    let folder = Path::new(path).parent().unwrap_or_else(|| Path::new(""));
    let mut faults = Vec::new();
    for (line, words) in numbered(text) {
        for after in words.split("](").skip(1) {
            let target = after.split([')', '#', ' ']).next().unwrap_or_default();
            let is_elsewhere =
                target.is_empty() || target.contains("://") || target.starts_with("mailto:");
            if !is_elsewhere && !exists(&folder.join(target)) {
                faults.push(Fault::new(
                    line,
                    format!("links to `{target}`, which is not there"),
                ));
            }
        }
    }
    faults
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

fn faults_where(text: &str, check: impl Fn(&str) -> Option<String>) -> Vec<Fault> {
    numbered(text)
        .filter_map(|(line, code)| Some(Fault::new(line, check(code)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asserts that a rule finds exactly these lines.
    #[track_caller]
    fn assert_lines(faults: &[Fault], lines: &[usize]) {
        let found: Vec<usize> = faults.iter().map(|fault| fault.line).collect();
        assert_eq!(found, lines, "{faults:?}");
    }

    #[test]
    fn file_without_module_doc_is_found() {
        assert_lines(
            &opens_with_a_module_doc("a/src/b.rs", "use std::fs;\n"),
            &[1],
        );
        assert_lines(&opens_with_a_module_doc("a/src/b.rs", ""), &[1]);
        assert_lines(
            &opens_with_a_module_doc("a/src/b.rs", "//! Holds it.\n"),
            &[],
        );
        assert_lines(&opens_with_a_module_doc("a/b.toml", "[a]\n"), &[]);
    }

    #[test]
    fn file_over_the_limit_is_found() {
        let at_limit = "//! x\n".repeat(LINES_LIMIT);
        assert_lines(&is_not_too_long("src/a.rs", &at_limit), &[]);
        assert_lines(
            &is_not_too_long("src/a.rs", &format!("{at_limit}//! x\n")),
            &[LINES_LIMIT + 1],
        );
        assert_lines(
            &is_not_too_long("docs/a.md", &format!("{at_limit}//! x\n")),
            &[],
        );
    }

    #[test]
    fn empty_names_are_found_in_paths_and_modules() {
        for path in [
            "src/utils.rs",
            "a/src/common/mod.rs",
            "setup/helpers.sh",
            "tests/misc/a.py",
        ] {
            assert_lines(&has_a_telling_name(path, "//! x\n"), &[1]);
        }
        assert_lines(
            &has_a_telling_name("src/a.rs", "//! x\npub(crate) mod types {\n"),
            &[2],
        );
        assert_lines(
            &has_a_telling_name(
                "src/a.rs",
                "//! x\n// mod types\nmod datatypes;\nlet types = 1;\n",
            ),
            &[],
        );
        assert_lines(
            &has_a_telling_name("src/commons_of_land.rs", "//! x\n"),
            &[],
        );
    }

    #[test]
    fn trailing_whitespace_is_found() {
        let text = format!("a{}\nb\nc{}\nd", ' ', '\t');
        assert_lines(&has_no_trailing_whitespace("a.md", &text), &[1, 3]);
        assert_lines(&has_no_trailing_whitespace("a.md", "a\n\nb\n"), &[]);
    }

    #[test]
    fn skipped_tests_are_found() {
        let text = format!(
            "#[test]\n    #[ign{}\n#[should{}(expected = \"x\")]\n// fine\n",
            "ore]", "_panic"
        );
        assert_lines(&skips_no_test("src/a.rs", &text), &[2, 3]);
        assert_lines(&skips_no_test("docs/a.md", &text), &[]);
    }

    #[test]
    fn sleeps_are_found_in_tests_only() {
        let nap = concat!("std::thread::sl", "eep(d);");
        assert_lines(
            &sleeps_in_no_test("tests/a.rs", &format!("//! x\n{nap}\n")),
            &[2],
        );
        assert_lines(
            &sleeps_in_no_test("a/src/b_tests.rs", &format!("//! x\n{nap}\n")),
            &[2],
        );
        let module = format!("//! x\n{nap}\n#[cfg(test)]\n#[allow(x)]\nmod tests {{\n{nap}\n}}\n");
        assert_lines(&sleeps_in_no_test("a/src/b.rs", &module), &[6]);
        let import = format!("//! x\n#[cfg(test)]\nuse a::b;\n{nap}\n");
        assert_lines(&sleeps_in_no_test("a/src/b.rs", &import), &[]);
        let waits = concat!("tokio::time::sl", "eep(d).await;");
        assert_lines(&sleeps_in_no_test("tests/a.rs", waits), &[1]);
    }

    #[test]
    fn work_left_without_a_reason_is_found() {
        let mark = concat!("TO", "DO");
        assert_lines(
            &gives_a_reason_for_what_is_left(
                "a.rs",
                &format!("// {mark} later\n// {mark}: later\n"),
            ),
            &[1, 2],
        );
        let reason = format!("// {mark}: the broker cannot tell the two apart yet\n");
        assert_lines(&gives_a_reason_for_what_is_left("a.rs", &reason), &[]);
        assert_lines(
            &gives_a_reason_for_what_is_left("a.sh", concat!("# FIX", "ME\n")),
            &[1],
        );
    }

    #[test]
    fn registry_hosts_are_found() {
        assert_lines(
            &names_no_registry_host("a.md", concat!("see https://crates", ".io/x\n")),
            &[1],
        );
        assert_lines(&names_no_registry_host("a.md", "see the registry\n"), &[]);
    }

    #[test]
    fn home_folders_are_found() {
        for home in [
            concat!("/ho", "me/ann/x"),
            concat!("'/ro", "ot/.cache'"),
            concat!("=/Us", "ers/ann"),
            concat!("/wo", "rk/x"),
        ] {
            assert_lines(&names_no_home_folder("a.sh", home), &[1]);
        }
        for fine in [
            concat!("target/wo", "rk/x"),
            concat!("${dir}/wo", "rk/x"),
            "~/.cache",
            "/usr/lib",
        ] {
            assert_lines(&names_no_home_folder("a.sh", fine), &[]);
        }
    }

    #[test]
    fn foreign_crates_out_of_their_place_are_found() {
        let line = "use rdkafka::ClientConfig;\n";
        assert_lines(
            &keeps_foreign_crates_in_their_place("query/src/a.rs", line),
            &[1],
        );
        assert_lines(
            &keeps_foreign_crates_in_their_place("topic/src/kafka/a.rs", line),
            &[],
        );
        let fine =
            "// as rdkafka::Message does\nself::sled::open();\nlet unsled = my_sled::new();\n";
        assert_lines(
            &keeps_foreign_crates_in_their_place("query/src/a.rs", fine),
            &[],
        );
    }

    #[test]
    fn metric_without_a_line_for_operators_is_found() {
        let metrics = "//! x\n/// A \"quoted\" word.\npub const A: &str = \"a_total\";\npub const LONG: &str =\n    \"b_seconds\";\n";
        assert_lines(
            &metrics_are_listed(metrics, "| `a_total` | `b_seconds` |"),
            &[],
        );
        assert_lines(&metrics_are_listed(metrics, "| `a_total` |"), &[4]);
        assert_lines(&metrics_are_listed(metrics, "a_total b_seconds"), &[3, 4]);
    }

    #[test]
    fn dead_links_are_found() {
        let exists = |target: &Path| target == Path::new("docs/adr/001.md");
        let text = "[a](adr/001.md) and [b](adr/001.md#why)\n[c](002.md)\n[d](https://example.org/x) [e](#here)\n";
        assert_lines(&links_lead_somewhere("docs/a.md", text, exists), &[2]);
    }
}
