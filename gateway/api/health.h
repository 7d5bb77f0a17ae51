/* /livez, /readyz, /metrics: what probes and scrapers ask. Thread: the loop's. */
#ifndef HEAVE_GATEWAY_API_HEALTH_H
#define HEAVE_GATEWAY_API_HEALTH_H

#include "gateway/api/call.h"

/* The process turns its loop. */
void health_live(struct api_call *call);
/* 200 when a submission could be accepted now: Redis up, not draining. 503 with the reason
 * otherwise. */
void health_ready(struct api_call *call);
/* Prometheus text format; the queue's gauges are refreshed first as long as Redis answers. */
void health_metrics(struct api_call *call);

#endif
