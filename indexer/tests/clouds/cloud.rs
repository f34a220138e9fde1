//! The object stores of three clouds on the loopback, each a child process.

use std::{
    io::{BufRead as _, BufReader, Lines},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use shoal_indexer::snapshot::bucket::Bucket;

/// The bucket, or container, that each of them has.
pub const BUCKET: &str = "snapshots";

/// Azure's emulator has one account, with a key that everybody knows.
const AZURE_ACCOUNT: &str = "devstoreaccount1";
const AZURE_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A store as a child; ends with this.
pub struct Cloud {
    child: Child,
    /// Kept open: what it still prints would end it.
    _output: Lines<BufReader<ChildStdout>>,
    scheme: &'static str,
    variables: Vec<(&'static str, String)>,
}

impl Cloud {
    /// An S3 API.
    pub fn s3() -> Self {
        let (child, address, output) = python("s3_server.py");
        let text = str::to_owned;
        let variables = vec![
            ("AWS_ENDPOINT_URL", address),
            ("AWS_ALLOW_HTTP", text("true")),
            ("AWS_ACCESS_KEY_ID", text("test")),
            ("AWS_SECRET_ACCESS_KEY", text("test")),
            ("AWS_REGION", text("us-east-1")),
        ];
        Self {
            child,
            _output: output,
            scheme: "s3",
            variables,
        }
    }

    /// The XML API of Google Cloud Storage.
    pub fn google() -> Self {
        let (child, address, output) = python("google_server.py");
        // A service account that signs nothing.
        let account = serde_json::json!({
            "private_key": "",
            "private_key_id": "",
            "client_email": "",
            "disable_oauth": true,
        });
        let variables = vec![
            ("GOOGLE_BASE_URL", address),
            ("ALLOW_HTTP", "true".to_owned()),
            ("GOOGLE_SERVICE_ACCOUNT_KEY", account.to_string()),
        ];
        Self {
            child,
            _output: output,
            scheme: "gs",
            variables,
        }
    }

    /// An Azure blob service, which looks at signatures.
    pub fn azure() -> Self {
        let home = home_of("SHOAL_AZURITE_HOME", "azurite");
        let mut command = Command::new(home.join("node"));
        command.arg(script("azure_server.js")).arg(&home);
        let (child, address, output) = started(command, "setup/azurite");
        let variables = vec![
            (
                "AZURE_STORAGE_ENDPOINT",
                format!("{address}/{AZURE_ACCOUNT}"),
            ),
            ("AZURE_ALLOW_HTTP", "true".to_owned()),
            ("AZURE_STORAGE_ACCOUNT_NAME", AZURE_ACCOUNT.to_owned()),
            ("AZURE_STORAGE_ACCOUNT_KEY", AZURE_KEY.to_owned()),
        ];
        Self {
            child,
            _output: output,
            scheme: "az",
            variables,
        }
    }

    /// The URL of what is below a prefix of a bucket.
    pub fn url(&self, bucket: &str, prefix: &str) -> String {
        format!("{}://{bucket}/{prefix}", self.scheme)
    }

    /// What is below a prefix of a bucket.
    pub fn open(&self, bucket: &str, prefix: &str) -> Bucket {
        let variables = self.variables.iter();
        let variables: Vec<_> = variables
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        Bucket::open_with(&self.url(bucket, prefix), &variables).unwrap()
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        // It ends by itself when its input ends.
        drop(self.child.stdin.take());
        let _ended = self.child.wait();
    }
}

type Started = (Child, String, Lines<BufReader<ChildStdout>>);

fn home_of(variable: &str, name: &str) -> PathBuf {
    let set = |name| std::env::var_os(name).map(PathBuf::from);
    set(variable).unwrap_or_else(|| {
        let cache = set("SHOAL_CACHE").unwrap_or_else(|| set("HOME").unwrap().join(".cache/shoal"));
        cache.join(name)
    })
}

fn script(name: &str) -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap();
    Path::new(&package).join("../tests/clients").join(name)
}

fn python(server: &str) -> Started {
    let python = std::env::var_os("SHOAL_PYTHON").map(PathBuf::from);
    let python = python.unwrap_or_else(|| home_of("SHOAL_VENV", "venv").join("bin/python3"));
    let mut command = Command::new(python);
    command.arg(script(server));
    started(command, "setup/python")
}

/// The child, and the address that it prints once it is ready.
fn started(mut command: Command, from: &str) -> Started {
    let child = command
        .arg(BUCKET)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child =
        child.unwrap_or_else(|error| panic!("cannot run {command:?}, see {from}: {error}"));
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address =
        lines.find_map(|line| Some(line.unwrap()).filter(|line| line.starts_with("http://")));
    let address = address.unwrap_or_else(|| panic!("{command:?} ended; is {from} up to date?"));
    (child, address, lines)
}
