//! What a node's tasks share.

use perf_atomics::{NodeState, Role};
use std::thread;

#[test]
fn the_leader_flag_ends_as_the_last_status_says() {
    for _ in 0..200 {
        let node: NodeState<()> = NodeState::new(1);
        thread::scope(|scope| {
            for role in [Role::Leader, Role::Follower, Role::Candidate] {
                let node = &node;
                scope.spawn(move || node.update_status(|status| status.role = role));
            }
        });
        assert_eq!(node.is_leader(), node.status().role == Role::Leader);
    }
}

#[test]
fn the_cluster_is_the_members_and_the_node_itself() {
    let node: NodeState<&str> = NodeState::new(7);
    assert_eq!((node.cluster_size(), node.status().node_id), (1, 7));
    node.members().insert(8, "eight");
    assert_eq!(node.cluster_size(), 2);
}

#[test]
fn cold_fields_come_back_as_they_were_set() {
    let node: NodeState<()> = NodeState::new(1);
    assert_eq!(
        (node.name(), node.address(), node.last_error()),
        (None, None, None)
    );
    node.set_name("one");
    node.set_address(([127, 0, 0, 1], 7000).into());
    assert_eq!(node.set_label("zone", "a"), None);
    assert_eq!(node.set_label("zone", "b").as_deref(), Some("a"));
    node.set_last_error(&"disk full");
    assert_eq!(node.name().as_deref(), Some("one"));
    assert_eq!(node.address().map(|a| a.port()), Some(7000));
    assert_eq!(node.label("zone").as_deref(), Some("b"));
    assert_eq!(node.labels().len(), 1);
    assert_eq!(node.last_error().as_deref(), Some("disk full"));
    node.clear_last_error();
    assert_eq!(node.last_error(), None);
    assert!(format!("{node:?}").contains("zone"));
}
