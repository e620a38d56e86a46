//! What the fuzzer starts from and what it once found, through the same checks as the fuzzer's (`fuzz/`).

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

#[path = "../../../../fuzz/src/lib.rs"]
mod targets;

#[test]
fn the_corpus_and_what_was_found_pass() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let mut failed = Vec::new();
    for (target, run) in targets::TARGETS {
        let mut inputs = 0;
        for kind in ["corpus", "regressions"] {
            let Ok(entries) = fs::read_dir(root.join(kind).join(target)) else { continue };
            for entry in entries {
                let path = entry.unwrap().path();
                let input = fs::read(&path).unwrap();
                inputs += 1;
                if catch_unwind(|| run(&input)).is_err() {
                    failed.push(path);
                }
            }
        }
        assert!(inputs > 0, "no inputs for {target}");
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
