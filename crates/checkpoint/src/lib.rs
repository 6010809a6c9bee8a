//! scrimp-checkpoint
