//! scrimp-memory
