use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::broker::{Broker, CAUDAL, signal, wait};

fn filled() -> Broker {
    let broker = Broker::start();
    broker.tool("kafka-topics", &["--create", "--topic", "t", "--partitions", "2"]).ok();
    let reader = ["--topic", "t", "--reader-property", "parse.key=true", "--reader-property", "key.separator=:"];
    let lines: String = (0..20).map(|n| format!("k{n}:{n}\n")).collect();
    broker.tool_with_input("kafka-console-producer", &reader, &lines).ok();
    let all = ["--topic", "t", "--group", "g", "--from-beginning", "--max-messages", "20"];
    assert_eq!(broker.tool("kafka-console-consumer", &all).ok().lines().count(), 20);
    broker
}

#[test]
fn offsets_are_shown_moved_and_deleted() {
    let broker = filled();
    let groups = |args: &[&str]| broker.tool("kafka-consumer-groups", args);
    assert_eq!(groups(&["--list"]).ok(), "g\n");
    let listed = groups(&["--list", "--state"]).ok();
    assert_eq!(listed, format!("{:25} {:20}\n{:25} {:20}\n", "GROUP", "STATE", "g", "Empty"));
    let shown = groups(&["--describe", "--group", "g"]);
    assert_eq!(shown.err, "\nConsumer group 'g' has no active members.\n");
    let shown = shown.ok();
    let header = "\nGROUP           TOPIC           PARTITION  CURRENT-OFFSET  LOG-END-OFFSET  LAG             CONSUMER-ID     \
                  HOST            CLIENT-ID\ng               t               0          ";
    assert!(shown.starts_with(header), "{shown}");
    let reset = |more: &[&str]| groups(&[&["--reset-offsets", "--group", "g", "--topic", "t"], more].concat());
    assert_eq!(
        reset(&["--to-earliest", "--execute"]).ok(),
        "\nGROUP           TOPIC           PARTITION  NEW-OFFSET\n\
         g               t               0          0\ng               t               1          0\n"
    );
    assert_eq!(reset(&["--shift-by", "2", "--export", "--dry-run"]).ok(), "t,0,2\nt,1,2\n\n");
    assert_eq!(reset(&["--to-offset", "1000", "--dry-run"]).ok().lines().count(), 4);
    assert_eq!(reset(&["--by-duration", "PT1H", "--export", "--dry-run"]).ok(), "t,0,0\nt,1,0\n\n");
    assert_eq!(reset(&["--to-datetime", "2020-01-01T00:00:00.000", "--export", "--dry-run"]).ok(), "t,0,0\nt,1,0\n\n");
    assert_eq!(reset(&["--to-current", "--export", "--dry-run"]).ok(), "t,0,0\nt,1,0\n\n");
    let dir = tempfile::tempdir().unwrap();
    let plan = dir.path().join("plan.csv");
    std::fs::write(&plan, "t,0,1\nt,1,2\n").unwrap();
    let from_file = ["--reset-offsets", "--group", "g", "--from-file", plan.to_str().unwrap(), "--execute"];
    assert!(groups(&from_file).ok().contains("g               t               1          2\n"));
    assert_eq!(
        groups(&["--delete-offsets", "--group", "g", "--topic", "t:0"]).ok(),
        format!(
            "Request succeeded for deleting offsets from group g.\n\n{:15} {:10} {:15}\n{:15} {:10} {:15}\n",
            "TOPIC", "PARTITION", "STATUS", "t", "0", "Successful"
        )
    );
    assert_eq!(
        groups(&["--delete", "--group", "g"]).ok(),
        "Deletion of requested consumer groups ('g') was successful.\n"
    );
    groups(&["--describe", "--group", "g"]).fails(0, "GroupIdNotFoundException: Group g not found.");
}

#[test]
fn a_group_with_members() {
    let broker = filled();
    let mut member = Command::new(CAUDAL)
        .args(["kafka-console-consumer", "--bootstrap-server", &broker.address, "--topic", "t", "--group", "live"])
        .args(["--command-property", "client.id=me"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let groups = |args: &[&str]| broker.tool("kafka-consumer-groups", args);
    let deadline = Instant::now() + Duration::from_secs(10);
    let members = loop {
        let shown = groups(&["--describe", "--group", "live", "--members", "--verbose"]);
        if shown.out.contains("t:0,1") {
            break shown.ok();
        }
        assert!(Instant::now() < deadline, "{shown:?}");
    };
    assert!(members.contains(" me "), "{members}");
    let state = groups(&["--describe", "--group", "live", "--state"]).ok();
    assert!(state.contains(" Stable ") && state.trim_end().ends_with(" 1"), "{state}");
    groups(&["--reset-offsets", "--group", "live", "--topic", "t", "--to-latest", "--execute"])
        .fails(0, "Assignments can only be reset if the group 'live' is inactive, but the current state is Stable.");
    groups(&["--delete", "--group", "live"]).fails(0, "GroupNotEmptyException: The group is not empty.");
    signal(&member, "TERM");
    assert_eq!(wait(&mut member), Some(143));
}

#[test]
fn regular_expressions() {
    let ran = crate::broker::run(&["kafka-consumer-groups", "--validate-regex", "a["], "");
    assert_eq!(ran.ok(), "The regular expression `a[` is invalid: missing closing ].\n");
}

/// The others of a group would wait for a member that was on its way in.
#[test]
fn a_member_that_is_interrupted_while_it_joins_is_forgotten() {
    let data = tempfile::tempdir().unwrap();
    let settings = ["up", "--port", "0", "--set", "group.initial.rebalance.delay.ms=30000"];
    let broker = Broker::start_in(data.path(), &settings);
    broker.caudal(&["topic", "create", "t"], "").ok();
    let mut child = Command::new(CAUDAL)
        .args(["consume", "t", "--group", "g", "--server", &broker.address])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let shown = || broker.caudal(&["group", "describe", "g"], "").out;
    let deadline = Instant::now() + Duration::from_secs(20);
    while !shown().contains("1 member(s)") {
        assert!(Instant::now() < deadline, "{}", shown());
    }
    signal(&child, "INT");
    assert_eq!(wait(&mut child), Some(130));
    assert_eq!(shown(), "g: Empty, 0 member(s)\n");
}
