/* Configuration: one YAML file in, one immutable snapshot out, or every mistake with its place.
 *
 * The option table (conf_table.c) has one row per option; from it come what the loader accepts, the
 * defaults, the bounds, `heave config --reference`, `--schema` and `--effective`. `${NAME}` in a
 * value is the environment's value ("$${" is a literal "${"); every secret has a `_file` twin;
 * HEAVE_SECTION__KEY overrides a scalar or a plain list (comma between the items). Relative paths
 * are relative to the folder of the configuration file. Input is bounded: 1 MiB, 20 levels, no
 * aliases.
 *
 * Must not know: loops, sockets, Redis. Thread: loading happens on one thread; a snapshot never
 * changes after it was loaded and may be shared by all threads through conf_ref/conf_unref. A
 * reload makes a second snapshot; who still holds the first keeps it whole.
 *
 * Strings, arrays and secrets belong to the snapshot; secrets are wiped with the last reference. */
#ifndef HEAVE_GATEWAY_CONF_H
#define HEAVE_GATEWAY_CONF_H

#include "backends/backend.h"
#include "gateway/admission.h"
#include "gateway/base/log.h"
#include "gateway/base/tls.h"
#include "gateway/intake.h"
#include "gateway/policy.h"
#include "gateway/route.h"
#include "queue/queue.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bits of conf.roles. */
enum conf_role {
    CONF_ROLE_INGEST = 1u << 0,   /* accept messages: smtp and http listeners */
    CONF_ROLE_DISPATCH = 1u << 1, /* claim batches and deliver them */
};

enum conf_protocol {
    CONF_PROTOCOL_SMTP,
    CONF_PROTOCOL_HTTP,
    CONF_PROTOCOL_ADMIN, /* HTTP with metrics, health and /v1/admin; served by the main thread */
};
enum conf_tls_mode {
    CONF_TLS_OFF,
    CONF_TLS_STARTTLS, /* smtp only */
    CONF_TLS_IMPLICIT,
};
enum conf_auth {
    CONF_AUTH_OFF,
    CONF_AUTH_OPTIONAL,
    CONF_AUTH_REQUIRED,
};
enum conf_line_endings {
    CONF_LINES_STRICT, /* a bare CR or LF refuses the message */
    CONF_LINES_REPAIR, /* a bare LF becomes CR LF */
};

/* One entry of `listeners:`. */
struct conf_listener {
    enum conf_protocol protocol;
    const char *bind; /* as listener_open() reads it: "0.0.0.0:2525", "[::]:25", "*:8080" */
    enum conf_tls_mode tls;
    enum conf_auth auth;
    bool auth_without_tls; /* smtp: AUTH is offered on a plain connection */
    /* smtp: peers that may send without AUTH, as the client "network": any sender, lane normal.
     * Clients with networks of their own come first. Checked to be addresses or CIDR. */
    const char *const *networks;
    size_t network_count;
    uint32_t max_recipients; /* of one message */
    uint64_t max_message_bytes;
    uint32_t max_connections; /* smtp: open at once, whole process; 0 for the others */
    int64_t idle_timeout_ms;
    enum conf_line_endings line_endings; /* smtp */
};

/* `tls:` for the listeners. cert_file and key_file are NULL when no listener needs them. */
struct conf_tls {
    const char *cert_file;
    const char *key_file;
    enum tls_version min_version;
};

enum conf_queue_kind {
    CONF_QUEUE_EMBEDDED,
    CONF_QUEUE_STANDALONE, /* somebody else's, in any topology */
};

/* `queue:`. `handle` is ready for queue_open() but for what only the process knows: socket_path
 * (embedded) and the tls context (made from ca_file when use_tls); copy it and fill these in. */
struct conf_queue {
    enum conf_queue_kind kind;
    const char *data_dir;        /* embedded: where the append-only file lives */
    const char *server_program;  /* embedded: NULL for redis-server from PATH */
    uint64_t disk_reserve_bytes; /* embedded: with less free, new messages are refused */
    bool use_tls;                /* rediss:// or tls: true */
    const char *ca_file;         /* NULL: the system's roots */
    const char *cert_file;       /* client certificate, or NULL */
    const char *key_file;
    const char *encryption_key_file; /* NULL: bodies are stored in the clear */
    struct queue_conf handle;
};

enum conf_on_unknown {
    CONF_UNKNOWN_RETRY, /* a batch whose answer was lost is tried again: maybe twice delivered */
    CONF_UNKNOWN_HOLD,  /* it is held for a person to decide */
};

/* One entry of `lanes:`. */
struct conf_lane {
    const char *name;
    uint32_t share_percent;  /* weight when claiming */
    const int64_t *retry_ms; /* retry_ms[i]: wait after failed attempt i + 1 */
    size_t retry_count;      /* at least 1 */
    bool retry_last_repeats; /* the last wait goes on until expires_ms; otherwise the ladder's end
                                expires the batch */
    int64_t expires_ms;      /* since acceptance */
    enum conf_on_unknown on_unknown;
};

/* "100/h": at most `units` in any window of `window_ms`. */
struct conf_rate {
    uint64_t units;
    int64_t window_ms;
    bool is_recipients; /* "10000r/d" counts recipients, "30/m" deliveries */
};

/* One entry of `backends:`. Index and order are those of conf.route.backends. */
struct conf_backend {
    struct backend_conf conf;
    const struct conf_rate *rates; /* per account or mailbox; per subscription for acs */
    size_t rate_count;
};

struct conf_log {
    enum log_level level;
    enum log_form form;
    bool full_addresses;
};

struct conf_private;

/* The snapshot. */
struct conf {
    const char *file;     /* as given to conf_load() */
    const char *hostname; /* for greetings, Received and Message-ID; gethostname() when not set */
    uint32_t roles;       /* enum conf_role */
    uint32_t ingress_threads;
    uint32_t delivery_threads;
    int64_t drain_timeout_ms; /* what SIGTERM leaves sessions and deliveries to finish */
    struct conf_log log;
    struct conf_tls tls;
    const struct conf_listener *listeners;
    size_t listener_count;
    struct conf_queue queue;
    const struct conf_lane *lanes; /* always alert, normal and bulk, and those the file adds */
    size_t lane_count;
    const struct credential_conf *credentials;
    size_t credential_count;
    const struct conf_backend *backends;
    size_t backend_count;
    struct route_conf route; /* complete: accepted domains, rules, backends */
    const struct policy_client_conf *clients;
    size_t client_count;
    struct admission_conf admission; /* complete */
    struct intake_conf intake; /* complete; max_message_bytes is the largest of the listeners */
    struct conf_private *private_part;
};

/* One thing that is wrong. Strings belong to the report. */
struct conf_mistake {
    size_t line; /* from 1; 0: not a place in the file (the file itself, an environment variable) */
    size_t column;        /* from 1 */
    const char *path;     /* "listeners.0.tls"; "" when there is none */
    const char *message;  /* "unknown key \"lisetners\", did you mean \"listeners\"?" */
    const char *expected; /* what would be right; "" when the message says it */
};

/* What conf_load() found wrong, in the order of the file. */
struct conf_report {
    struct arena arena;
    const char *file;
    struct conf_mistake *mistakes;
    size_t count;
    size_t room;
    bool cut; /* there were more than CONF_MISTAKES_MAX */
};
#define CONF_MISTAKES_MAX 200

/* What a dispatcher has room for; the lanes with those that are always there. */
#define CONF_LANES_MAX 8
#define CONF_BACKENDS_MAX 16

void conf_report_init(struct conf_report *report);
void conf_report_release(struct conf_report *report);
/* Adds what somebody found who used the values, at the option `path` of `conf`. */
void conf_report_add(struct conf_report *report, const struct conf *conf, const char *path,
                     const char *message);
/* Appends "FILE:LINE:COL: message (expected ...)\n" for each mistake. Errors: ERR_LIMIT, ERR_NOMEM
 * (the buf). */
MUST_USE int conf_report_print(const struct conf_report *report, struct buf *out);
/* The same as one JSON object: {"file", "ok", "mistakes": [{"line", "column", "path", "message",
 * "expected"}]}. */
MUST_USE int conf_report_print_json(const struct conf_report *report, struct buf *out);

/* Loads `file` with the process's environment. `report` was initialised by the caller, who releases
 * it. Owns:   `*out` is one reference for the caller. Errors: ERR_IO (file not readable), ERR_INVAL
 * (mistakes), ERR_LIMIT (too large); `report` has at least one mistake then, and `*out` is not
 * written. */
MUST_USE int conf_load(const char *file, struct conf **out, struct conf_report *report);
/* The same from bytes; `file` names them in messages and is the base of relative paths.
 * `environment`: NULL-terminated "NAME=value" list; NULL: none at all. */
MUST_USE int conf_load_bytes(const char *file, struct span bytes, const char *const *environment,
                             struct conf **out, struct conf_report *report);
/* Any thread. */
struct conf *conf_ref(struct conf *conf);
void conf_unref(struct conf **conf);

/* Where "tls.cert_file" or "listeners.0.bind" stands in the file; false when it does not (defaults,
 * environment). For messages of those who use the values. */
bool conf_where(const struct conf *conf, const char *path, size_t *out_line, size_t *out_column);
/* The name of a value, as in the file: "smtp", "starttls", ... */
const char *conf_protocol_name(enum conf_protocol protocol);
/* What changed between two snapshots and only takes effect after a restart, as option paths with
 * commas between, into `out` (empty: nothing). For the log line of a reload. Errors: ERR_LIMIT,
 * ERR_NOMEM (the buf). */
MUST_USE int conf_restart_needed(const struct conf *before, const struct conf *after,
                                 struct buf *out);

/* ---- Pages made from the option table (conf_print.c). Errors: ERR_LIMIT, ERR_NOMEM (the buf).
 * ---- */
MUST_USE int conf_print_reference(struct buf *out);
MUST_USE int conf_print_schema(struct buf *out);
/* Every option in force with its value and where it comes from; secrets as ***. */
MUST_USE int conf_print_effective(const struct conf *conf, bool json, struct buf *out);

/* ---- Value syntaxes, for tests and the command line. Errors: ERR_INVAL, ERR_LIMIT (out of
 * int64/uint64). ---- */
/* "90", "500ms", "5s", "15m", "6h", "3d", "1h30m"; a plain number is seconds. */
MUST_USE int conf_parse_duration(struct span text, int64_t *out_ms);
/* "1048576", "64KiB", "50MiB", "4GiB", "10kB", "10MB", "1GB". */
MUST_USE int conf_parse_size(struct span text, uint64_t *out_bytes);
/* "30/m", "100/h", "10000r/d", "60/10s". */
MUST_USE int conf_parse_rate(struct span text, struct conf_rate *out);

#endif
