"""All kinds of faults."""

from __future__ import annotations

from tests.faults.chaos import network_faults, process_faults, reader_faults, redis_faults
from tests.faults.chaos.schedule import Kind

#: All of them by name.
KINDS: dict[str, Kind] = {
    "Redis killed": Kind("Redis", 0.2, 3, redis_faults.kill_redis, loses=True),
    "Redis rolled back": Kind("Redis", 0.5, 4, redis_faults.roll_back_redis, loses=True),
    "Redis frozen": Kind("Redis", 1, 8, redis_faults.freeze_redis),
    "Redis full": Kind("Redis", 1, 5, redis_faults.fill_redis),
    "Redis flushed": Kind("Redis", 0, 0, redis_faults.flush_redis, loses=True),
    "scripts flushed": Kind("Redis", 0, 0, redis_faults.flush_scripts),
    "a key evicted": Kind("Redis", 0, 0, redis_faults.evict),
    "subscribers cut": Kind("Redis", 0, 0, redis_faults.cut_subscribers),
    "clients cut": Kind("Redis", 0, 0, redis_faults.cut_clients),
    "network slow": Kind("network", 1, 5, network_faults.slow_network),
    "network held one way": Kind("network", 1, 8, network_faults.hold_network),
    "network lost one way": Kind("network", 1, 6, network_faults.lose_network),
    "network cut": Kind("network", 0.2, 3, network_faults.cut_network),
    "network half open": Kind("network", 0, 0, network_faults.half_open_network),
    "web killed": Kind("web", 0.2, 3, process_faults.kill_web),
    "web stopped": Kind("web", 0, 1, process_faults.stop_web),
    "web frozen": Kind("web", 1, 6, process_faults.freeze_web),
    "web process killed": Kind("web", 0, 0, process_faults.kill_web_process),
    "child killed": Kind("worker", 0, 0, process_faults.kill_child),
    "worker killed": Kind("worker", 0.2, 4, process_faults.kill_worker),
    "worker stopped": Kind("worker", 0, 1, process_faults.stop_worker),
    "worker frozen": Kind("worker", 1, 7, process_faults.freeze_worker),
    "slow reader": Kind("reader", 1, 6, reader_faults.read_slowly),
    "half-closed reader": Kind("half-closed reader", 1, 4, reader_faults.half_close),
    "garbage from a reader": Kind("garbage", 1, 4, reader_faults.send_garbage),
    "aborted readers": Kind("aborts", 0, 0, reader_faults.abort),
    "streams closed": Kind("streams", 0, 0, reader_faults.close_streams),
    "entry removed": Kind("entry", 0, 0, reader_faults.remove_entry),
    "pages reloaded": Kind("pages", 0, 0, reader_faults.reload_pages),
}
