//! scrimp-server
