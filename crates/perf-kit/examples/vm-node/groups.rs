//! The Raft groups that the inventory is spread over: which of them a VM belongs to, and how many there are.
//!
//! The count decides where a VM is found, so it never changes: it is kept beside the log, and a start with another
//! count is refused. What the replicated state says of it (see
//! [`Inventory::raft_groups`](crate::inventory::Inventory::raft_groups)) stops a node whose folder is new.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// Groups there may be.
pub(crate) const GROUPS_MAX: u32 = 256;

/// The file with the count, in the folder of the log.
const FILE: &str = "groups";

/// The group of a VM, from 0: by the CRC-32 of its name, the same on every node and in every version.
pub(crate) fn group_of(name: &str, groups: u32) -> u32 {
    crc32fast::hash(name.as_bytes()) % groups.max(1)
}

/// Keeps the count of groups with the data, or compares it with the one that is kept.
///
/// # Errors
/// Another count is kept, or the folder can not be read or written. A log without a count is of one group.
pub(crate) fn keep_count(folder: &Path, groups: u32) -> Result<()> {
    let path = folder.join(FILE);
    let kept = match fs::read_to_string(&path) {
        Ok(text) => {
            let count = text.trim().parse::<u32>();
            let words = || {
                format!(
                    "{} should have a count of groups, and has {text:?}",
                    path.display()
                )
            };
            Some(count.with_context(words)?)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            folder.join("log.id").exists().then_some(1)
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    match kept {
        Some(kept) if kept == groups => Ok(()),
        Some(kept) => bail!(
            "the data in {} is spread over {kept} groups, and --groups is {groups}: \
             start the node with --groups {kept}",
            folder.display()
        ),
        None => {
            write(folder, &path, groups).with_context(|| format!("cannot write {}", path.display()))
        }
    }
}

/// Durable under its name when it returns, or not there.
fn write(folder: &Path, path: &Path, groups: u32) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let new = folder.join(format!("{FILE}.new"));
    let mut file = fs::File::create(&new)?;
    writeln!(file, "{groups}")?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    #[cfg(unix)]
    fs::File::open(folder)?.sync_all()?;
    Ok(())
}

/// Which groups know a host. The node forgets a host with the last group that does.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    groups_by_host: BTreeMap<u64, BTreeSet<u32>>,
}

impl Roster {
    /// A group knows the host.
    pub(crate) fn add(&mut self, host: u64, group: u32) {
        self.groups_by_host.entry(host).or_default().insert(group);
    }

    /// A group knows the host no more. Whether it was the last one.
    pub(crate) fn remove(&mut self, host: u64, group: u32) -> bool {
        let Some(groups) = self.groups_by_host.get_mut(&host) else {
            return true;
        };
        groups.remove(&group);
        let is_last = groups.is_empty();
        if is_last {
            self.groups_by_host.remove(&host);
        }
        is_last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_their_groups_for_ever_and_are_spread() {
        let groups: Vec<u32> = ["web-1", "web-2", "db-1"]
            .map(|name| group_of(name, 16))
            .to_vec();
        assert_eq!(groups, GOLDEN, "data that is there would not be found");
        let mut counts = [0_u32; 16];
        for number in 0..16_000 {
            counts[group_of(&format!("c{}-{number}", number % 64), 16) as usize] += 1;
        }
        assert!(
            counts.iter().all(|&count| (800..1200).contains(&count)),
            "{counts:?}"
        );
        assert_eq!(group_of("web-1", 1), 0);
    }

    const GOLDEN: [u32; 3] = [8, 2, 3];

    #[test]
    fn a_count_is_kept_and_another_one_is_refused_with_both() {
        let folder = tempfile::tempdir().expect("a temporary directory can be made");
        let data = folder.path().join("data");
        keep_count(&data, 16).expect("nothing is kept");
        keep_count(&data, 16).expect("it is the same");
        let refused = keep_count(&data, 4)
            .expect_err("it is another one")
            .to_string();
        assert!(
            refused.contains("16 groups") && refused.contains("--groups is 4"),
            "{refused}"
        );
        fs::write(data.join(FILE), "many").expect("the folder can be written to");
        let refused = keep_count(&data, 16)
            .expect_err("it is no count")
            .to_string();
        assert!(refused.contains("many"), "{refused}");
    }

    #[test]
    fn a_log_without_a_count_is_of_one_group() {
        let folder = tempfile::tempdir().expect("a temporary directory can be made");
        fs::write(folder.path().join("log.id"), "").expect("the folder can be written to");
        assert!(keep_count(folder.path(), 16).is_err());
        keep_count(folder.path(), 1).expect("it is what it was");
    }

    #[test]
    fn a_host_is_forgotten_with_its_last_group() {
        let mut roster = Roster::default();
        roster.add(1, 0);
        roster.add(1, 1);
        roster.add(1, 1);
        assert!(!roster.remove(1, 1));
        assert!(roster.remove(1, 0));
        assert!(roster.remove(1, 0));
    }
}
