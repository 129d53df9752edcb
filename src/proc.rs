//! What `/proc` says of ports, processes and cgroups.
