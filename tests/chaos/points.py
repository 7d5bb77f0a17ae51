"""Every fail point of gateway/base/failpoint.h, with what it takes to get there (tests/check/failpoints.py compares).

`action`   what happens there; kill unless it says otherwise
`most`     the passage is drawn from 1..most
`needs`    what the round must add to its load, and how it is set up: see rounds.py
"""

PLAIN = {"most": 40}
RARE = {"most": 3}

POINTS = {
    # Accepting.
    "intake-before-enqueue": {**PLAIN},
    "key-begun": {"most": 20},
    "enqueue-body-ahead": {**RARE, "needs": "large"},
    "enqueue-before-write": {**PLAIN},
    "enqueue-answered": {**PLAIN},
    "enqueue-wait-answered": {"most": 20, "needs": "replica"},
    "smtp-before-reply": {**PLAIN},
    "api-before-reply": {"most": 20},
    # Claiming.
    "claim-before-write": {**PLAIN},
    "claim-answered": {**PLAIN},
    "claim-body-answered": {**RARE, "needs": "large"},
    "body-piece-answered": {**RARE, "needs": "large"},
    "courier-before-send": {**PLAIN},
    "start-before-write": {**PLAIN},
    "start-written": {**PLAIN},
    "start-refused": {**PLAIN, "action": "error"},
    # Sending.
    "smtp-mid-content": {**RARE, "needs": "large"},
    "smtp-after-dot": {**PLAIN},
    "smtp-answered": {**PLAIN},
    "http-body-sent": {"most": 20},
    "http-answered": {**PLAIN},
    # Settling.
    "settle-before-write": {**PLAIN},
    "settle-answered": {**PLAIN},
    "settle-partial": {**RARE, "needs": "partial"},
    "settle-recovered": {"most": 1, "needs": "recovery"},
    "settle-expired": {**RARE, "needs": "expiry"},
    "release-before-write": {**RARE, "needs": "throttle"},
    "gate-before-write": {"most": 1, "needs": "throttle"},
    # Operators.
    "work-before-write": {"most": 6, "needs": "operator"},
    "work-applied": {"most": 6, "needs": "operator"},
    # Timers.
    "heartbeat-before-write": {**RARE, "needs": "slow"},
    "heartbeat-answered": {**RARE, "needs": "slow"},
    "sweep-before-write": {**RARE, "needs": "sweep"},
    "sweep-answered": {**RARE, "needs": "sweep"},
    # The connection to Redis.
    "redis-refuses": {**PLAIN, "action": "error"},
    "redis-write-fails": {**PLAIN, "action": "error"},
    "redis-answer-lost": {**PLAIN, "action": "error"},
    # The process.
    "stream-written": {"most": 400},
    "queue-up": {"most": 3},
    "queue-close": {"most": 3, "needs": "stop"},
    "reload-before": {"most": 1, "needs": "reload"},
    "reload-applied": {"most": 1, "needs": "reload"},
    "drain-begun": {"most": 1, "needs": "stop"},
    "drain-releasing": {"most": 1, "needs": "stop"},
    "embedded-starting": {"most": 1, "needs": "embedded"},
    "embedded-started": {"most": 1, "needs": "embedded"},
}
