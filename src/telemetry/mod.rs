//! (floor telemetry)
