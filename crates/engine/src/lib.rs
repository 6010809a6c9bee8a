//! scrimp-engine
