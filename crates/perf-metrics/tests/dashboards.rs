//! The dashboard and the alert rules ask for what `NodeMetrics` exposes, by names and labels.
#![cfg(feature = "prometheus")]

use perf_metrics::helpers::update_resource_metrics_fast;
use perf_metrics::node::{Operation, Outcome, ResourceState, Service};
use perf_metrics::{KeyValue, LabelSet, NodeMetrics, Registry, prometheus};
use std::collections::{BTreeMap, BTreeSet};

const DASHBOARD: &str = include_str!("../dashboards/node.json");
const RULES: &str = include_str!("../dashboards/node-alerts.yml");

/// The names of all samples with the labels that they have.
fn exposed() -> BTreeMap<String, BTreeSet<String>> {
    let registry = Registry::new();
    let metrics = NodeMetrics::new(&registry).unwrap();
    // Counters of tables begin as zeros; these show once they were recorded.
    for gauge in [
        &metrics.raft_term,
        &metrics.raft_commit_index,
        &metrics.raft_applied_index,
        &metrics.raft_is_leader,
        &metrics.vm_count,
        &metrics.vm_running,
        &metrics.cluster_nodes,
    ] {
        gauge.set(1);
    }
    for state in ResourceState::ALL {
        metrics.cluster_vcpus[*state].set(1);
        metrics.cluster_memory[*state].set(1);
    }
    update_resource_metrics_fast(1, 1, 1, 1, &metrics);
    for histogram in [
        &metrics.raft_commit_duration,
        &metrics.raft_apply_duration,
        &metrics.storage_sync_duration,
        &metrics.pool_wait_duration,
        &metrics.rpc_duration[Service::ALL[0]],
        &metrics.vm_operation_duration[Operation::Create],
    ] {
        histogram.record(0.01);
    }
    metrics.message_size.record(1);
    metrics.storage_batch_size.record(1);
    metrics
        .vm_operations_other
        .add(1, &[KeyValue::new("operation", "resize")]);
    let mut text = String::new();
    prometheus::write(&registry.collect(), &mut text);
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, labels) = line.split_once(['{', ' ']).unwrap();
        let keys = labels
            .split('"')
            .step_by(2)
            .filter_map(|part| part.strip_suffix('='));
        let keys = keys.map(|key| key.trim_start_matches(',').to_owned());
        all.entry(name.to_owned()).or_default().extend(keys);
    }
    all
}

/// What an expression names: metrics, and labels in braces and in `by (...)`.
fn names(expression: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut metrics, mut labels) = (BTreeSet::new(), BTreeSet::new());
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let (mut rest, mut depth, mut in_labels) = (expression, 0usize, false);
    let mut was_by = false;
    while let Some(c) = rest.chars().next() {
        let len = if c.is_ascii_alphabetic() || c == '_' {
            rest.find(|c| !is_part(c)).unwrap_or(rest.len())
        } else {
            c.len_utf8()
        };
        let (token, after) = rest.split_at(len);
        rest = after;
        match token {
            "\"" => rest = rest.split_once('"').unwrap().1,
            "[" => rest = rest.split_once(']').unwrap().1,
            "{" => in_labels = true,
            "(" if was_by => (in_labels, depth) = (true, 1),
            "}" => in_labels = false,
            ")" if in_labels && depth == 1 => (in_labels, depth) = (false, 0),
            _ if !token.starts_with(is_part) || token.starts_with(|c: char| c.is_ascii_digit()) => {
            }
            _ if in_labels => drop(labels.insert(token.to_owned())),
            "by" => {}
            _ if rest.trim_start().starts_with('(') || rest.trim_start().starts_with("by ") => {}
            _ => drop(metrics.insert(token.to_owned())),
        }
        if !token.trim().is_empty() {
            was_by = token == "by";
        }
    }
    (metrics, labels)
}

fn check(expressions: &[String], exposed: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for expression in expressions {
        let (metrics, labels) = names(expression);
        assert!(!metrics.is_empty(), "{expression}");
        for metric in metrics {
            let has = exposed.get(&metric);
            let has = has.unwrap_or_else(|| panic!("{metric} is not exposed: {expression}"));
            for label in &labels {
                // Those that Prometheus adds.
                let is_known = ["job", "instance"].contains(&label.as_str()) || has.contains(label);
                assert!(is_known, "{metric} has no label {label}: {expression}");
            }
            used.insert(metric);
        }
    }
    used
}

#[test]
fn the_dashboard_shows_every_instrument_and_nothing_else() {
    let exposed = exposed();
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut expressions = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            expressions.push(target["expr"].as_str().unwrap().to_owned());
            let legend = target["legendFormat"].as_str().unwrap();
            let labels = legend
                .split("{{")
                .skip(1)
                .map(|part| part.split("}}").next().unwrap());
            let (metrics, _) = names(expressions.last().unwrap());
            for label in labels.filter(|label| *label != "instance") {
                assert!(
                    metrics.iter().any(|m| exposed[m].contains(label)),
                    "{legend}"
                );
            }
        }
    }
    let used = check(&expressions, &exposed);
    let families = exposed.keys().map(|name| {
        let base = name.strip_suffix("_sum").or(name.strip_suffix("_count"));
        // A gauge may end like a part of a histogram.
        match base.filter(|base| exposed.contains_key(&format!("{base}_bucket"))) {
            Some(base) => format!("{base}_bucket"),
            None => name.clone(),
        }
    });
    let missing: BTreeSet<_> = families.filter(|name| !used.contains(name)).collect();
    assert!(missing.is_empty(), "not shown: {missing:?}");
}

#[test]
fn the_alerts_ask_for_what_is_exposed() {
    let mut expressions: Vec<String> = Vec::new();
    let mut is_folded = false;
    for line in RULES.lines() {
        if let Some(expression) = line.trim().strip_prefix("expr: ") {
            is_folded = expression == ">-";
            expressions.push(expression.trim_start_matches(">-").to_owned());
        } else if is_folded && line.starts_with("          ") {
            expressions.last_mut().unwrap().push_str(line);
        } else {
            is_folded = false;
        }
    }
    assert_eq!(expressions.len(), RULES.matches("- alert:").count());
    check(&expressions, &exposed());
    // The values of labels too.
    assert_eq!(Outcome::Failed.value(), "failed");
    assert_eq!(
        RULES.matches("status=\"").count(),
        RULES.matches("status=\"failed\"").count()
    );
}

#[test]
fn the_linter_of_prometheus_takes_the_rules() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/dashboards/node-alerts.yml");
    match std::process::Command::new("promtool")
        .args(["check", "rules", path])
        .output()
    {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(error) => eprintln!("skipped: the program `promtool` is not there: {error}"),
    }
}
