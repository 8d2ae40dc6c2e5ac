//! The example `vm-node` as clients see it: every route, every kind of bad input, and what happens without a quorum.

use std::io::Write as _;
use std::net::TcpStream;

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

    let with = |name: &str, data: &str| {
        format!(
            r#"{{"name":"{name}","vcpus":1,"memory_mib":64,"disk_gib":1,"user_data":"{data}"}}"#
        )
    };
    let longest = "é".repeat(8 * 1024);
    let created = cluster.send(leader, "POST", "/vms", &with("web-2", &longest));
    assert_eq!(created.status, 201, "{created:?}");
    assert!(created.json()["user_data"].is_null(), "writes leave it out");
    let read = cluster.send(follower, "GET", "/vms/web-2", "").json();
    assert_eq!(read["user_data"], longest);
    let row = &cluster.send(follower, "GET", "/vms", "").json()["vms"][1];
    assert_eq!(row["user_data_bytes"], 16 * 1024, "{row}");
    let checksum = crc32fast::hash(longest.as_bytes());
    assert_eq!(row["user_data_crc32"], checksum, "{row}");
    let too_long = cluster.send(leader, "POST", "/vms", &with("web-3", &(longest + "x")));
    assert_eq!(too_long.json()["error"], "invalid", "{too_long:?}");
    let gone = cluster.send(leader, "DELETE", "/vms/web-2", "");
    assert_eq!(gone.status, 200, "{gone:?}");

    let redirect = cluster.send(follower, "POST", "/vms/web-1/stop", "");
    assert_eq!(redirect.status, 307, "{redirect:?}");
    let place = format!(
        "location: http://{}/vms/web-1/stop",
        cluster.address(leader)
    );
    assert!(redirect.head.contains(&place), "{redirect:?}");
    assert_eq!(redirect.json()["leader"], cluster.address(leader));

    let metrics = cluster.send(leader, "GET", "/metrics", "");
    let create = r#"vm_operations_total{operation="create",status="success"} 2"#;
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
        (
            "POST",
            "/members",
            r#"{"id":9,"http":"127.0.0.1:1","raft":"127.0.0.1:2","vcpus":0,"memory_mib":64,"disk_gib":1}"#,
            422,
            "invalid",
        ),
        (
            "POST",
            "/vms",
            r#"["a",1,64,1,"","spread",null]"#,
            400,
            "malformed",
        ),
        (
            "POST",
            "/vms",
            r#"{"name":"-","vcpus":1,"memory_mib":64,"disk_gib":1}"#,
            422,
            "invalid",
        ),
        ("GET", "/vms/web-1?stale=maybe", "", 400, "malformed"),
        ("GET", "/vms?stale=maybe", "", 400, "malformed"),
        ("GET", "/vms?limit=0", "", 422, "invalid"),
        ("GET", "/vms?limit=1001", "", 422, "invalid"),
        ("GET", "/vms?after=A", "", 422, "invalid"),
        ("GET", "/vms/%ff", "", 400, "malformed"),
        ("DELETE", "/vms/%ff", "", 400, "malformed"),
        ("DELETE", "/members/x", "", 400, "malformed"),
        ("DELETE", "/members/77", "", 404, "unknown_member"),
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
    let long = "x".repeat(50_000);
    let unknown = format!(r#"{{"{long}":1}}"#);
    let answer = cluster.send(leader, "POST", "/vms", &unknown);
    assert_eq!(answer.status, 400);
    assert!(answer.body.len() < 1000, "{} bytes", answer.body.len());
    for (path, status, code) in [
        (format!("/vms/{}", &long[..4000]), 414, "long_target"),
        (format!("/status?{}", &long[..4000]), 414, "long_target"),
    ] {
        let answer = cluster.send(leader, "GET", &path, "");
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(answer.json()["error"], code);
    }
    let heads = [
        (format!("x-long: {}", &long[..20_000]), 431, "long_headers"),
        (
            "origin: http://elsewhere.example".to_owned(),
            403,
            "foreign_origin",
        ),
    ];
    for (head, status, code) in heads {
        let answer = cluster.send_with(leader, "POST", "/vms/web-1/stop", &head);
        assert_eq!(
            (answer.status, &answer.json()["error"]),
            (status, &code.into())
        );
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
    // The id does not answer another question.
    let id = r#"{"request_id":"r-1"}"#;
    for (method, path) in [("DELETE", "/vms/web-1"), ("POST", "/vms/web-1/start")] {
        let reused = cluster.send(leader, method, path, id);
        assert_eq!(
            (reused.status, &reused.json()["error"]),
            (409, &"reused".into())
        );
    }
    let vm = cluster.send(leader, "GET", "/vms/web-1", "");
    assert_eq!(vm.json()["running"], false, "{vm:?}");
}

#[test]
fn vms_are_listed_in_pages() {
    let cluster = Cluster::start();
    let leader = cluster.leader();
    for number in 0..5 {
        let body = VM.replace("web-1", &format!("web-{number}"));
        assert_eq!(cluster.send(leader, "POST", "/vms", &body).status, 201);
    }
    let (mut names, mut path) = (Vec::new(), "/vms?limit=2".to_owned());
    loop {
        let page = cluster.send(leader, "GET", &path, "").json();
        assert_eq!(page["count"], 5, "{page}");
        let vms = page["vms"].as_array().expect("a list");
        names.extend(vms.iter().map(|vm| vm["name"].to_string()));
        let Some(next) = page["next"].as_str() else {
            break;
        };
        assert_eq!(vms.len(), 2, "{page}");
        path = format!("/vms?limit=2&after={next}");
    }
    let all: Vec<String> = (0..5).map(|number| format!("\"web-{number}\"")).collect();
    assert_eq!(names, all);
}

#[test]
fn vms_of_one_group_are_kept_apart_when_they_come_at_once() {
    let cluster = Cluster::start();
    let leader = cluster.leader();
    for round in 0..10 {
        let hosts: Vec<u64> = std::thread::scope(|scope| {
            let creates: Vec<_> = (0..3)
                .map(|n| {
                    let body = format!(
                        r#"{{"name":"g{round}-{n}","vcpus":1,"memory_mib":64,"disk_gib":1,"apart":"g{round}","strategy":"pack"}}"#
                    );
                    let cluster = &cluster;
                    scope.spawn(move || {
                        let vm = cluster.send(leader, "POST", "/vms", &body).json();
                        vm["host"].as_u64().unwrap_or_else(|| panic!("{vm}"))
                    })
                })
                .collect();
            let hosts = creates.into_iter().map(|create| create.join());
            hosts.map(|host| host.expect("it was made")).collect()
        });
        let mut sorted = hosts.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [1, 2, 3], "round {round}: {hosts:?}");
    }
}

#[test]
fn what_is_no_request_is_told_so_in_json() {
    let cluster = Cluster::start();
    let headers = format!("GET /status HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(200_000));
    let many = format!("GET /status HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(500));
    let bad = [
        ("nonsense\r\n\r\n", 400, "malformed"),
        ("GET /sta tus HTTP/1.1\r\n\r\n", 400, "malformed"),
        (&headers, 431, "long_headers"),
        (&many, 431, "long_headers"),
        // Ten bytes are announced, and none comes.
        (
            "POST /vms HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n",
            408,
            "slow_body",
        ),
    ];
    for (bytes, status, code) in bad {
        let answer = cluster.send_bytes(1, bytes.as_bytes());
        let shown = &bytes[..bytes.len().min(60)];
        assert_eq!(
            (answer.status, &answer.json()["error"]),
            (status, &code.into()),
            "{shown:?}"
        );
    }
}

#[test]
fn members_that_do_not_exist_take_no_quorum_away() {
    let mut cluster = Cluster::start();
    let leader = cluster.leader();
    for id in 11..=13 {
        let member = format!(
            r#"{{"id":{id},"http":"127.0.0.1:1","raft":"127.0.0.1:{}","vcpus":1,"memory_mib":64,"disk_gib":1}}"#,
            id - 9
        );
        let added = cluster.send(leader, "POST", "/members", &member);
        assert_ne!(added.status, 200, "{added:?}");
        let body = VM.replace("web-1", &format!("web-{id}"));
        let created = cluster.send(leader, "POST", "/vms", &body);
        assert_eq!(created.status, 201, "{created:?}");
    }
    // With one of the three gone it is still a quorum of those that vote.
    let follower = (1..=3).find(|&id| id != leader).expect("there are three");
    cluster.kill(follower);
    assert_eq!(cluster.send(leader, "POST", "/vms", VM).status, 201);
    cluster.restart(follower);
    for id in 11..=13 {
        let removed = cluster.send(leader, "DELETE", &format!("/members/{id}"), "");
        assert_eq!(removed.status, 200, "{removed:?}");
    }
    cluster.voters(leader, 3);
}

#[test]
fn idle_connections_take_no_node_away() {
    // More than the node has places for, by its limit of open files.
    const FILES: u64 = 400;
    const IDLE: usize = 300;
    let cluster = Cluster::start_with_files(FILES);
    let leader = cluster.leader();
    let mut idle = Vec::new();
    for id in 1..=3 {
        for number in 0..IDLE {
            let mut stream = TcpStream::connect(cluster.address(id)).expect("it listens");
            if number % 2 == 0 {
                // A head that never ends is as idle. The node may have closed it for the next ones by now.
                let _ = stream.write_all(b"GET /status HTTP/1.1\r\nhost: ");
            }
            idle.push(stream);
            // Where peers connect to, a stranger that says nothing is not kept either.
            if number % 3 == 0 {
                idle.push(TcpStream::connect(cluster.raft_address(id)).expect("it listens"));
            }
        }
    }
    for number in 0..20 {
        let body = VM.replace("web-1", &format!("web-{number}"));
        let created = cluster.send(leader, "POST", "/vms", &body);
        assert_eq!(created.status, 201, "{created:?}");
    }
    for id in 1..=3 {
        let list = cluster.send(id, "GET", "/vms", "");
        assert_eq!((list.status, &list.json()["count"]), (200, &20.into()));
        let said = cluster.words(id);
        assert!(
            said.contains("as many clients are connected as may be"),
            "{said}"
        );
    }
}

#[cfg(unix)]
#[test]
fn a_node_that_is_asked_to_end_hands_its_office_over() {
    for signal in ["TERM", "INT"] {
        let mut cluster = Cluster::start();
        let leader = cluster.leader();
        assert_eq!(cluster.send(leader, "POST", "/vms", VM).status, 201);
        let status = cluster.end_by(signal, leader);
        assert!(
            status.success(),
            "{signal}: {status}, {}",
            cluster.words(leader)
        );
        let next = cluster.leader();
        assert_ne!(next, leader);
        let list = cluster.send(next, "GET", "/vms", "").json();
        assert_eq!(list["count"], 1, "{list}");
    }
}

#[cfg(unix)]
#[test]
fn a_node_that_missed_a_new_member_follows_it_when_it_leads() {
    let mut cluster = Cluster::start();
    let leader = cluster.leader();
    let missing = (1..=3).find(|&id| id != leader).expect("there are three");
    cluster.kill(missing);
    cluster.restart(4);
    let member = format!(
        r#"{{"id":4,"http":"{}","raft":"{}","vcpus":64,"memory_mib":65536,"disk_gib":1024}}"#,
        cluster.address(4),
        cluster.raft_address(4)
    );
    let added = cluster.send(leader, "POST", "/members", &member);
    assert_eq!(added.status, 200, "{added:?}");
    // The office goes round until the new member has it.
    while cluster.leader_by(4) != 4 {
        let leader = cluster.leader_by(4);
        cluster.end_by("TERM", leader);
        cluster.restart(leader);
    }
    // It is started as ever, and has not heard of the fourth.
    cluster.restart(missing);
    cluster.until_applied(missing, 4);
}

#[test]
fn a_member_is_added_listed_and_removed() {
    let mut cluster = Cluster::start();
    let leader = cluster.leader();
    cluster.restart(4);
    let member = |raft: &str| {
        format!(
            r#"{{"id":4,"http":"{}","raft":"{raft}","vcpus":64,"memory_mib":65536,"disk_gib":1024}}"#,
            cluster.address(4),
        )
    };
    let right = member(cluster.raft_address(4));
    for _ in 0..2 {
        // Asked again, it is done already.
        let added = cluster.send(leader, "POST", "/members", &right);
        assert_eq!(added.status, 200, "{added:?}");
    }
    let taken = cluster.send(leader, "POST", "/members", &member("127.0.0.1:9"));
    assert_eq!(
        (taken.status, &taken.json()["error"]),
        (409, &"refused".into())
    );
    let rows = cluster.voters(leader, 4);
    assert_eq!(rows[3]["raft"], cluster.raft_address(4), "{rows:?}");

    let follower = (1..=3).find(|&id| id != leader).expect("there are three");
    let redirect = cluster.send(follower, "DELETE", "/members/4", "");
    assert_eq!(redirect.status, 307, "{redirect:?}");
    let removed = cluster.send(leader, "DELETE", "/members/4", "");
    assert_eq!(removed.status, 200, "{removed:?}");
    cluster.voters(leader, 3);
    let status = cluster.send(leader, "GET", "/status", "").json();
    assert_eq!(
        status["hosts"].as_array().map(Vec::len),
        Some(3),
        "{status}"
    );
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
