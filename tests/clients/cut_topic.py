"""Deletes the early records of a topic's partitions, as an operator might who keeps snapshots.

A topic that is only compacted refuses that, so its policy is changed for the moment.
"""

import argparse

from confluent_kafka import TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)


def set_policy(admin, topic, policy):
    """Sets the topic's cleanup.policy and waits for the broker's word."""
    entry = ConfigEntry("cleanup.policy", policy, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    for done in admin.incremental_alter_configs([resource]).values():
        done.result(30)


def main():
    """Reads PARTITION=OFFSET pairs: below each offset nothing is left."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("cuts", nargs="+", metavar="PARTITION=OFFSET")
    options = parser.parse_args()
    pairs = [cut.split("=") for cut in options.cuts]
    admin = AdminClient({"bootstrap.servers": options.bootstrap})
    set_policy(admin, options.topic, "compact,delete")
    below = [TopicPartition(options.topic, int(number), int(offset)) for number, offset in pairs]
    for done in admin.delete_records(below).values():
        done.result(30)
    set_policy(admin, options.topic, "compact")


if __name__ == "__main__":
    main()
