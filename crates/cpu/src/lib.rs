//! scrimp-cpu
