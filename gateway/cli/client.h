/* A small blocking HTTP client for the commands. The only user of libcurl outside
 * backends/http_client: commands have no loop.
 *
 * Must not know: resources. Thread: main. */
#ifndef HEAVE_GATEWAY_CLI_CLIENT_H
#define HEAVE_GATEWAY_CLI_CLIENT_H

#include "gateway/cli/cli.h"

#include <stddef.h>

struct client;

/* Which listener is wanted when the gateway is found by its configuration: submitting needs one of
 * protocol http; the rest prefers the admin listener, where the machine itself needs no key. */
enum client_purpose {
    CLIENT_SUBMIT,
    CLIENT_INSPECT,
};

/* Finds the gateway: --url, else -c FILE, else HEAVE_URL. The API key is HEAVE_API_KEY.
 * Errors: ERR_INVAL (nothing given, bad configuration), ERR_NOTFOUND (no fitting listener), with a
 * sentence. */
MUST_USE int client_open(const struct cli_common *common, enum client_purpose purpose,
                         struct client **out, struct err *err);
void client_close(struct client **client);

struct client_call {
    const char *method;       /* "GET", "POST" */
    const char *path;         /* with query, percent-encoded */
    const char *content_type; /* NULL: no body */
    struct span body;
    const char *header; /* one more "Name: value" line, or NULL */
};
struct client_reply {
    long status;
    struct buf body;    /* at most 64 MiB */
    long retry_after_s; /* 0: not said */
};

/* Sends and waits for the answer, whatever its status. The caller releases the reply, also after an
 * error. Errors: ERR_UNAVAILABLE (not reachable, cut off), ERR_LIMIT (answer too large), with a
 * sentence. */
MUST_USE int client_send(struct client *client, const struct client_call *call,
                         struct client_reply *out, struct err *err);
void client_reply_release(struct client_reply *reply);

/* Exit code of a status: 2xx done, 429 and 503 try later, others refused. */
int client_exit_code(long status);
/* Says on standard error what a refusal says (problem+json), and returns its exit code. */
int client_refused(const struct cli_command *command, const struct client_reply *reply);

/* Appends "name=value" percent-encoded, with '?' or '&' in front. Errors: ERR_LIMIT, ERR_NOMEM (the
 * buf). */
MUST_USE int client_query(struct buf *path, const char *name, const char *value);

#endif
