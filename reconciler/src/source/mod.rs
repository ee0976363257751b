//! Sources: where policy documents come from; one read gives one immutable [`Snapshot`].
