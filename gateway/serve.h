/* The process: threads, signals, reload, drain, join. The only file that knows every thread.
 *
 *     main      signals, configuration, the embedded Redis, the admin listeners
 *     ingress   N loops with a front each: smtp and http listeners
 *     delivery  M loops with a courier each
 *
 * SIGHUP reloads: clients, networks, routes, accepted domains and certificates take effect at once,
 * the rest after a restart; a bad file keeps the old configuration. SIGTERM and SIGINT drain; a
 * second one stops at once. */
#ifndef HEAVE_GATEWAY_SERVE_H
#define HEAVE_GATEWAY_SERVE_H

#include "gateway/conf.h"

/* Runs the gateway until it is told to stop. `conf`: a reference is taken for the run. `file`: what
 * SIGHUP loads again. Returns the process's exit code: 0 after a drain, 1 when it could not start
 * (a sentence is on standard error). */
int serve_run(struct conf *conf, const char *file);

#endif
