//! scrimp-scheduler
