//! rules §14: a handover that goes wrong at any step costs nothing. The other side is played here.
