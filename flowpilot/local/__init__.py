"""Embedded real services for development, the demo and the tests: Apache Kafka and PostgreSQL
without containers, under a supervisor that restarts what dies and leaves no process behind.

Nothing here is needed in production: name your servers in the settings instead.
"""
