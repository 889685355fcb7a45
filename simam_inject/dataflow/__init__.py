"""The dataflow of a network, recorded from forwards of a twin: values, axes, structure, sites."""
