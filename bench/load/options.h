/* What heave-load is asked to do: the command line as a struct. Pure; thread: any.
 *
 * Every pointer lends from argv or from static text. */
#ifndef HEAVE_BENCH_LOAD_OPTIONS_H
#define HEAVE_BENCH_LOAD_OPTIONS_H

#include "gateway/base/buf.h"

#include <stdbool.h>
#include <stdint.h>

#define LOAD_HOST_MAX 256
#define LOAD_PATH_MAX 512

enum load_kind {
    LOAD_SMTP,
    LOAD_HTTP,
};

struct load_options {
    enum load_kind kind;
    const char *to;      /* with more than one recipient "to@dom" stands for to1@dom .. toR@dom */
    const char *from;    /* default: `to` */
    const char *auth;    /* USER:PASSWORD, or NULL */
    const char *key;     /* API key, or NULL */
    const char *ca_file; /* NULL: the system's roots */
    const char *ids;     /* file for the accepted ids, or NULL */
    const char *server;
    const char *url;
    const char *rate_text;
    uint64_t messages; /* UINT64_MAX: until the duration is over */
    uint64_t recipients;
    uint64_t size_bytes; /* of the text, without header */
    uint64_t connections;
    uint64_t rate; /* messages a second; 0: as fast as answers come */
    uint64_t duration_s;
    uint64_t timeout_s; /* of connecting and of each message */
    bool tls;           /* STARTTLS; for http TLS from the first byte */
    bool tls_implicit;  /* smtp: TLS from the first byte */
    bool one_per_connection;
    bool no_pipelining;
    bool auth_login; /* AUTH LOGIN although PLAIN is offered */
    bool retry;
    /* Worked out of the above. */
    char host[LOAD_HOST_MAX];
    uint16_t port;
    char path[LOAD_PATH_MAX];
};

/* 0, or 1 when the help was asked for (print it with load_options_help). Errors: ERR_INVAL (wrong
 * usage), ERR_UNSUPPORTED (a kind of load this version has not), with a sentence. */
MUST_USE int load_options_read(int argc, char **argv, struct load_options *out, struct err *err);
void load_options_help(void);

#endif
