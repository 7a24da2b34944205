"""What can be wrong with a dataset that can be read: one file for each kind, all of them told by `demos.doctor.check`."""
