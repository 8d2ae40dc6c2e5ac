//! The inventory spread over several Raft groups, as clients see it: one interface, whichever nodes lead the groups.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{Answer, Cluster, try_send};

const GROUPS: u32 = 4;
/// How long groups may take to have leaders and hosts, on a machine that does much else.
const SETTLED_MAX: Duration = Duration::from_secs(60);

/// Sends a request to a node, and to the leader that it names, until it is answered otherwise than that there is none
/// yet.
fn ask(cluster: &Cluster, id: u64, method: &str, path: &str, body: &str) -> Answer {
    let start = Instant::now();
    loop {
        let mut answer = cluster.send(id, method, path, body);
        if answer.status == 307 {
            let leader = answer.json()["leader"].as_str().map(str::to_owned);
            let leader = leader.expect("a redirect names the leader");
            answer = try_send(&leader, method, path, body).expect("it answers");
        }
        // No leader, or one that has not announced the hosts.
        let is_early = [307, 503, 504].contains(&answer.status);
        if !is_early || start.elapsed() > SETTLED_MAX {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn vm(name: &str) -> String {
    format!(
        r#"{{"name":"{name}","vcpus":2,"memory_mib":64,"disk_gib":1,"user_data":"of {name}","request_id":"{name}"}}"#
    )
}

fn groups(status: &Value) -> &Vec<Value> {
    status["groups"].as_array().expect("it lists groups")
}

#[test]
fn one_interface_serves_vms_of_all_groups() {
    let mut cluster = Cluster::start_with_groups(GROUPS);
    let names: Vec<String> = (0..40).map(|number| format!("vm-{number:02}")).collect();
    for (place, name) in names.iter().enumerate() {
        let node = place as u64 % 3 + 1;
        let made = ask(&cluster, node, "POST", "/vms", &vm(name));
        assert_eq!(made.status, 201, "{made:?}");
        // The same request again has the same answer.
        let again = ask(&cluster, node, "POST", "/vms", &vm(name));
        assert_eq!(again.json(), made.json());
    }
    let status = cluster.send(1, "GET", "/status", "").json();
    assert_eq!(groups(&status).len(), GROUPS as usize, "{status}");
    let used = groups(&status)
        .iter()
        .all(|group| group["commit_index"].as_u64() > Some(3));
    assert!(used, "every group has some of 40 VMs: {status}");
    for node in 1..=3 {
        let (mut listed, mut path) = (Vec::new(), "/vms?limit=7".to_owned());
        loop {
            let page = cluster.send(node, "GET", &path, "").json();
            assert_eq!(page["count"], 40, "{page}");
            let vms = page["vms"].as_array().expect("it is a list");
            listed.extend(vms.iter().map(|vm| vm["name"].as_str().map(str::to_owned)));
            let Some(next) = page["next"].as_str() else {
                break;
            };
            path = format!("/vms?limit=7&after={next}");
        }
        assert!(listed.iter().flatten().eq(&names), "{listed:?}");
        let read = cluster.send(node, "GET", "/vms/vm-07", "").json();
        assert_eq!(read["user_data"], "of vm-07");
    }
    // The office of each group goes to another node, and calls follow it.
    cluster.end_by("TERM", 1);
    cluster.restart(1);
    for name in &names {
        let gone = ask(&cluster, 1, "DELETE", &format!("/vms/{name}"), "");
        assert_eq!(gone.status, 200, "{gone:?}");
    }
    assert_eq!(ask(&cluster, 1, "GET", "/vms", "").json()["count"], 0);
}

#[test]
fn vms_that_are_made_one_after_the_other_are_apart_in_all_groups() {
    let cluster = Cluster::start_with_groups(GROUPS);
    let leader = cluster.leader();
    for round in 0..5 {
        let mut hosts: Vec<u64> = (0..3)
            .map(|number| {
                let vm = vm(&format!("db-{round}-{number}"));
                let vm = vm.replace("{", &format!(r#"{{"apart":"db-{round}","#));
                let made = ask(&cluster, leader, "POST", "/vms", &vm);
                made.json()["host"].as_u64().expect("it has a host")
            })
            .collect();
        hosts.sort_unstable();
        assert_eq!(hosts, [1, 2, 3], "round {round}");
    }
}

#[test]
fn leaders_are_spread_over_the_nodes() {
    let cluster = Cluster::start_with_groups(GROUPS);
    let start = Instant::now();
    loop {
        let status = cluster.send(2, "GET", "/status", "").json();
        let leaders = groups(&status).iter();
        let leaders: Vec<u64> = leaders
            .filter_map(|group| group["leader"].as_u64())
            .collect();
        if leaders == [1, 2, 3, 1] {
            return;
        }
        assert!(start.elapsed() < SETTLED_MAX, "{status}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn members_come_and_go_in_all_groups() {
    let mut cluster = Cluster::start_with_groups(GROUPS);
    let first = cluster.leader();
    for name in ["a", "b", "c", "d", "e", "f"] {
        assert_eq!(ask(&cluster, first, "POST", "/vms", &vm(name)).status, 201);
    }
    cluster.restart(4);
    let member = format!(
        r#"{{"id":4,"http":"{}","raft":"{}","vcpus":64,"memory_mib":4096,"disk_gib":64}}"#,
        cluster.address(4),
        cluster.raft_address(4)
    );
    let added = ask(&cluster, first, "POST", "/members", &member);
    assert_eq!(added.status, 200, "{added:?}");
    let read = ask(&cluster, 4, "GET", "/vms", "").json();
    assert_eq!(read["count"], 6, "{read}");
    // A member that leads groups is removed while it is alive, and one that does not.
    let gone = (1..=3).find(|&id| id != first).expect("there are three");
    for id in [gone, first] {
        let removed = ask(&cluster, 4, "DELETE", &format!("/members/{id}"), "");
        let said = || cluster.words(id) + &cluster.words(4);
        assert_eq!(removed.status, 200, "{removed:?}; they said:\n{}", said());
        cluster.kill(id);
        let ids: BTreeSet<u64> = cluster
            .voters(4, if id == gone { 3 } else { 2 })
            .iter()
            .filter_map(|row| row["id"].as_u64())
            .collect();
        assert!(!ids.contains(&id), "{ids:?}");
    }
    for name in ["a", "b", "c", "d", "e", "f"] {
        let started = ask(&cluster, 4, "POST", &format!("/vms/{name}/start"), "");
        assert_eq!(started.status, 200, "{started:?}");
    }
}

#[test]
fn another_count_of_groups_is_refused_with_both_counts() {
    let mut cluster = Cluster::start_with_groups(GROUPS);
    let leader = cluster.leader();
    let other = (1..=3).find(|&id| id != leader).expect("there are three");
    cluster.kill(other);
    let said = cluster.fails_with_groups(other, 2);
    assert!(
        said.contains("4 groups") && said.contains("--groups is 2"),
        "{said}"
    );
    // A node whose folder is new learns it from the others.
    cluster.wipe(other);
    let said = cluster.fails_with_groups(other, 2);
    assert!(
        said.contains("4 groups") && said.contains("--groups is 2"),
        "{said}"
    );
    cluster.wipe(other);
    cluster.restart(other);
    cluster.voters(leader, 3);
}
