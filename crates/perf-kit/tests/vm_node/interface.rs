//! The example `vm-node` as clients see it: every route, every kind of bad input, and what happens without a quorum.

use crate::cluster::{Cluster, send_claiming};

const VM: &str = r#"{"name":"web-1","vcpus":2,"memory_mib":2048,"disk_gib":20}"#;

#[test]
fn every_route_answers_and_bad_input_is_told_so() {
    let cluster = Cluster::start();
    let leader = cluster.leader();
    let follower = (1..=3).find(|&id| id != leader).expect("there are three");

    let created = cluster.send(leader, "POST", "/vms", VM);
    assert_eq!(created.status, 201, "{created:?}");
    assert!(created.head.contains("location: /vms/web-1"), "{created:?}");
    let read = cluster.send(leader, "GET", "/vms/web-1", "");
    assert_eq!((read.status, read.json()), (200, created.json()));
    let started = cluster.send(leader, "POST", "/vms/web-1/start", "");
    assert_eq!(
        (started.status, &started.json()["running"]),
        (200, &true.into())
    );
    // A follower reads what was acknowledged before, too.
    let list = cluster.send(follower, "GET", "/vms", "");
    assert_eq!(list.json()["count"], 1, "{list:?}");
    assert_eq!(list.json()["vms"][0]["running"], true);

    let redirect = cluster.send(follower, "POST", "/vms/web-1/stop", "");
    assert_eq!(redirect.status, 307, "{redirect:?}");
    let place = format!(
        "location: http://{}/vms/web-1/stop",
        cluster.address(leader)
    );
    assert!(redirect.head.contains(&place), "{redirect:?}");
    assert_eq!(redirect.json()["leader"], cluster.address(leader));

    let metrics = cluster.send(leader, "GET", "/metrics", "");
    let create = r#"vm_operations_total{operation="create",status="success"} 1"#;
    assert!(metrics.body.contains(create), "{}", metrics.body);
    assert_eq!(cluster.send(leader, "GET", "/healthz", "").status, 200);
    assert!(
        cluster
            .send(leader, "GET", "/", "")
            .body
            .contains("<title>vm-node</title>")
    );

    let bad = [
        ("POST", "/vms", VM, 409, "exists"),
        ("POST", "/vms", "{", 400, "malformed"),
        ("POST", "/vms", r#"{"name":"a"}"#, 400, "malformed"),
        (
            "POST",
            "/vms",
            r#"{"name":"a","vcpus":1,"memory_mib":64,"disk_gib":1,"gpu":1}"#,
            400,
            "malformed",
        ),
        (
            "POST",
            "/vms",
            r#"{"name":"A b","vcpus":1,"memory_mib":64,"disk_gib":1}"#,
            422,
            "invalid",
        ),
        (
            "POST",
            "/vms",
            r#"{"name":"a","vcpus":0,"memory_mib":64,"disk_gib":1}"#,
            422,
            "invalid",
        ),
        (
            "POST",
            "/vms",
            r#"{"name":"a","vcpus":1,"memory_mib":4294967295,"disk_gib":1}"#,
            422,
            "invalid",
        ),
        ("POST", "/vms/none/start", "", 404, "unknown_vm"),
        ("GET", "/vms/none", "", 404, "unknown_vm"),
        ("DELETE", "/vms/none", "", 404, "unknown_vm"),
        (
            "POST",
            "/vms/web-1/start",
            r#"{"request_id":""}"#,
            422,
            "invalid",
        ),
        (
            "POST",
            "/members",
            r#"{"id":0,"http":"x","raft":"y","vcpus":1,"memory_mib":1,"disk_gib":1}"#,
            422,
            "invalid",
        ),
        ("GET", "/nothing", "", 404, "no_route"),
        ("PUT", "/vms", "", 405, "wrong_method"),
    ];
    for (method, path, body, status, code) in bad {
        let answer = cluster.send(leader, method, path, body);
        assert_eq!(answer.status, status, "{method} {path} {body}: {answer:?}");
        assert_eq!(answer.json()["error"], code, "{method} {path} {body}");
        let message = answer.json()["message"].as_str().unwrap_or_default().len();
        assert!(message > 20, "{answer:?}");
    }
    // Nothing of that was half done.
    let after = cluster.send(leader, "GET", "/vms", "");
    assert_eq!(after.json()["count"], 1, "{after:?}");
    let huge = send_claiming(cluster.address(leader), "POST", "/vms", "{", 100_000_000);
    assert_eq!(huge.expect("it is answered before it is sent").status, 413);

    // All three hosts are full for this one.
    let vast = r#"{"name":"vast","vcpus":1024,"memory_mib":16777216,"disk_gib":1048576}"#;
    let statuses: Vec<u16> = (0..4)
        .map(|n| {
            let body = vast.replace("vast", &format!("vast-{n}"));
            cluster.send(leader, "POST", "/vms", &body).status
        })
        .collect();
    assert_eq!(statuses[3], 507, "{statuses:?}");

    let deleted = cluster.send(leader, "DELETE", "/vms/web-1", "");
    assert_eq!(deleted.status, 200);
    assert_eq!(cluster.send(leader, "GET", "/vms/web-1", "").status, 404);
}

#[test]
fn who_asks_again_with_the_same_id_gets_the_same_answer() {
    let cluster = Cluster::start();
    let leader = cluster.leader();
    let body = VM.replace('}', r#","request_id":"r-1"}"#);
    let first = cluster.send(leader, "POST", "/vms", &body);
    let again = cluster.send(leader, "POST", "/vms", &body);
    assert_eq!((first.status, again.status), (201, 201), "{again:?}");
    assert_eq!(first.json(), again.json());
    let other = cluster.send(leader, "POST", "/vms", VM);
    assert_eq!(other.status, 409);
}

#[test]
fn vms_of_one_group_are_kept_apart() {
    let cluster = Cluster::start();
    let leader = cluster.leader();
    let mut hosts: Vec<u64> = (0..3)
        .map(|n| {
            let body = format!(
                r#"{{"name":"db-{n}","vcpus":1,"memory_mib":64,"disk_gib":1,"apart":"db","strategy":"pack"}}"#
            );
            let vm = cluster.send(leader, "POST", "/vms", &body).json();
            vm["host"].as_u64().unwrap_or_else(|| panic!("{vm}"))
        })
        .collect();
    hosts.sort_unstable();
    assert_eq!(hosts, [1, 2, 3]);
    // A fourth has to share.
    let body = r#"{"name":"db-3","vcpus":1,"memory_mib":64,"disk_gib":1,"apart":"db"}"#;
    assert_eq!(cluster.send(leader, "POST", "/vms", body).status, 201);
}

#[test]
fn without_a_quorum_nothing_is_promised_and_nothing_is_lost() {
    let mut cluster = Cluster::start();
    let leader = cluster.leader();
    assert_eq!(cluster.send(leader, "POST", "/vms", VM).status, 201);
    let others: Vec<u64> = (1..=3).filter(|&id| id != leader).collect();
    for &id in &others {
        cluster.kill(id);
    }
    let body = VM.replace("web-1", "web-2");
    let write = cluster.send(leader, "POST", "/vms", &body);
    assert!([503, 504].contains(&write.status), "{write:?}");
    let read = cluster.send(leader, "GET", "/vms/web-1", "");
    assert_eq!(read.status, 503, "{read:?}");
    let stale = cluster.send(leader, "GET", "/vms/web-1?stale=true", "");
    assert_eq!(stale.status, 200, "{stale:?}");
    for &id in &others {
        cluster.restart(id);
    }
    let leader = cluster.leader();
    let list = cluster.send(leader, "GET", "/vms", "").json();
    let names: Vec<&str> = list["vms"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|vm| vm["name"].as_str())
        .collect();
    // What was acknowledged is there; what was not may be.
    assert!(names.contains(&"web-1"), "{names:?}");
    assert!(
        names.iter().all(|name| ["web-1", "web-2"].contains(name)),
        "{names:?}"
    );
}

#[test]
fn a_fourth_node_joins_and_counts() {
    let mut cluster = Cluster::start();
    let leader = cluster.leader();
    assert_eq!(cluster.send(leader, "POST", "/vms", VM).status, 201);
    cluster.restart(4);
    let member = format!(
        r#"{{"id":4,"http":"{}","raft":"{}","vcpus":64,"memory_mib":65536,"disk_gib":1024}}"#,
        cluster.address(4),
        cluster.raft_address(4)
    );
    let added = cluster.send(leader, "POST", "/members", &member);
    assert_eq!(added.status, 200, "{added:?}");
    // It has what was there before, and a vote: with one of the first three gone, three of four are a quorum.
    let follower = (1..=3).find(|&id| id != leader).expect("there are three");
    cluster.kill(follower);
    let body = VM.replace("web-1", "web-2");
    let written = cluster.send(leader, "POST", "/vms", &body);
    assert_eq!(written.status, 201, "{written:?}");
    let list = cluster.send(4, "GET", "/vms", "");
    assert_eq!(
        (list.status, &list.json()["count"]),
        (200, &2.into()),
        "{list:?}"
    );
    let hosts = cluster.send(4, "GET", "/status", "").json();
    assert_eq!(hosts["hosts"].as_array().map(Vec::len), Some(4), "{hosts}");
}
