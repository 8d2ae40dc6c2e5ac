//! Hot-path toolkit for distributed-system nodes.
