//! scrimp-backend
