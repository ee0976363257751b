//! The lab: namespaces, links, packets.
