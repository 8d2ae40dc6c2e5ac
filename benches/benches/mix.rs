//! Criterion over what a node does all day.

mod support;

fn main() {
    support::run("mix");
}
