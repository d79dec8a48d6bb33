"""A run from configuration to stored certificates: opened, planned, driven, resumed, verified."""
