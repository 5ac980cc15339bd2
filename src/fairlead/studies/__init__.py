"""The studies: linear scripts behind the CLI; import them by their modules (`fairlead.studies.train.train`)."""
