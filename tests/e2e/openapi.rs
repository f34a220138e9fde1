//! The documents at `/openapi.json` are valid OpenAPI, by a validator that knows all of it.
//!
//! That they say what the servers do is tested beside the servers.

use std::process::Command;

use crate::harness::{python::interpreter, root};

#[test]
fn both_documents_are_valid_openapi() {
    let script = "import json, sys\nfrom openapi_spec_validator import validate\n\
                  for path in sys.argv[1:]: validate(json.load(open(path)))\n\
                  broken = json.load(open(sys.argv[1]))\nbroken['paths']['/x'] = {'get': {'responses': 3}}\n\
                  try: validate(broken)\nexcept Exception: print('refuses a broken one')";
    let ran = Command::new(interpreter())
        .args(["-c", script])
        .arg(root().join("query/src/http/openapi.json"))
        .arg(root().join("producer/src/gateway/openapi.json"))
        .output()
        .expect("make setup installs Python's packages");
    let errors = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{errors}");
    let told = String::from_utf8_lossy(&ran.stdout);
    assert_eq!(told.trim(), "refuses a broken one");
}
