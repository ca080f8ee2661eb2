"""The public contract: topics, identifiers, messages and their JSON. Imports nothing of FlowPilot's."""
