#include "gateway/cli/client.h"

#include "gateway/base/codec.h"
#include "gateway/conf.h"
#include "gateway/policy.h"

#include <curl/curl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CLIENT_BODY_MAX ((size_t)64 << 20)
#define CLIENT_CONNECT_S 10L
#define CLIENT_TOTAL_S 300L

struct client {
    CURL *easy;
    char base[600];       /* "http://127.0.0.1:8080" */
    char connect_to[600]; /* "name:port:address:port" when name and address differ */
    char *ca_file;
    bool needs_no_key; /* and would only be given less for one */
    char error[CURL_ERROR_SIZE];
};

/* ---- Finding the gateway ---- */

/* Address to connect to for a bound one: a wildcard is reached through the loopback interface. */
static void reachable(const char *bind, char *host, size_t host_bytes, const char **out_port)
{
    const char *colon = strrchr(bind, ':');
    *out_port = colon + 1;
    (void)snprintf(host, host_bytes, "%.*s", (int)(colon - bind), bind);
    if (strcmp(host, "0.0.0.0") == 0 || strcmp(host, "*") == 0) {
        (void)snprintf(host, host_bytes, "127.0.0.1");
    } else if (strcmp(host, "[::]") == 0) {
        (void)snprintf(host, host_bytes, "[::1]");
    }
}

/* The admin listener takes everybody on its own machine for the operator as long as no client has
 * the scope admin. A client's key is not sent there: it would narrow that to the client's scopes,
 * and whoever keeps a key in HEAVE_API_KEY to send could not see the queue. */
static bool trusts_this_machine(const struct conf *conf, const struct conf_listener *listener,
                                const char *host)
{
    struct span name = span_of(host);
    bool is_loopback = span_starts(name, SPAN_LIT("127.")) || span_eq(name, SPAN_LIT("[::1]")) ||
                       span_eq(name, SPAN_LIT("localhost"));
    bool has_admin = false;
    for (size_t i = 0; i < conf->client_count; i++) {
        has_admin = has_admin || (conf->clients[i].scopes & POLICY_SCOPE_ADMIN) != 0;
    }
    return listener->protocol == CONF_PROTOCOL_ADMIN && is_loopback && !has_admin;
}

static int rank(const struct conf_listener *listener, enum client_purpose purpose)
{
    if (listener->protocol == CONF_PROTOCOL_SMTP) {
        return 0;
    }
    bool is_admin = listener->protocol == CONF_PROTOCOL_ADMIN;
    if (is_admin && purpose == CLIENT_SUBMIT) {
        return 0;
    }
    /* Without TLS no certificate has to be trusted to talk to one's own machine. */
    return (is_admin ? 4 : 2) + (listener->tls == CONF_TLS_OFF ? 1 : 0);
}

static int pick_listener(const struct conf *conf, enum client_purpose purpose,
                         struct client *client, struct err *err)
{
    const struct conf_listener *best = NULL;
    for (size_t i = 0; i < conf->listener_count; i++) {
        int own = rank(&conf->listeners[i], purpose);
        if (own > 0 && (best == NULL || own > rank(best, purpose))) {
            best = &conf->listeners[i];
        }
    }
    if (best == NULL || span_ends(span_of(best->bind), SPAN_LIT(":0"))) {
        return err_set(err, ERR_NOTFOUND, "%s has no listener of protocol %s with a fixed port",
                       conf->file, purpose == CLIENT_SUBMIT ? "http" : "admin or http");
    }
    char host[300];
    const char *port = NULL;
    reachable(best->bind, host, sizeof host, &port);
    client->needs_no_key = trusts_this_machine(conf, best, host);
    if (best->tls == CONF_TLS_OFF) {
        (void)snprintf(client->base, sizeof client->base, "http://%s:%s", host, port);
        return ERR_OK;
    }
    /* The certificate names the gateway, not the loopback address. */
    (void)snprintf(client->base, sizeof client->base, "https://%s:%s", conf->hostname, port);
    (void)snprintf(client->connect_to, sizeof client->connect_to, "%s:%s:%s:%s", conf->hostname,
                   port, host, port);
    return ERR_OK;
}

static int find_by_conf(const char *file, enum client_purpose purpose, struct client *client,
                        struct err *err)
{
    struct conf *conf = NULL;
    struct conf_report report;
    conf_report_init(&report);
    int status = conf_load(file, &conf, &report);
    if (status == ERR_OK) {
        status = pick_listener(conf, purpose, client, err);
    } else {
        const char *first = report.count > 0 ? report.mistakes[0].message : "";
        status = err_set(
            err, ERR_INVAL,
            "%s cannot be used (%s); heave check -c FILE says more, and --url URL needs no "
            "configuration",
            file, first);
    }
    conf_report_release(&report);
    conf_unref(&conf);
    return status;
}

static int find_by_url(const char *url, struct client *client, struct err *err)
{
    struct span text = span_of(url);
    if (!span_istarts(text, SPAN_LIT("http://")) && !span_istarts(text, SPAN_LIT("https://"))) {
        return err_set(err, ERR_INVAL, "\"%s\" is no address such as http://127.0.0.1:8080", url);
    }
    while (span_ends(text, SPAN_LIT("/"))) {
        text.len--;
    }
    if (text.len >= sizeof client->base) {
        return err_set(err, ERR_INVAL, "the address is too long");
    }
    memcpy(client->base, text.data, text.len);
    client->base[text.len] = '\0';
    return ERR_OK;
}

int client_open(const struct cli_common *common, enum client_purpose purpose, struct client **out,
                struct err *err)
{
    struct client *client = mem_zero(sizeof *client);
    const char *url = common->url != NULL || common->config != NULL ? common->url
                                                                    : getenv("HEAVE_URL");
    int status = ERR_OK;
    if (url != NULL) {
        status = find_by_url(url, client, err);
    } else if (common->config != NULL) {
        status = find_by_conf(common->config, purpose, client, err);
    } else {
        status = err_set(err, ERR_INVAL, "where is the gateway? Give -c FILE or --url URL");
    }
    if (status == ERR_OK) {
        client->easy = curl_easy_init();
        if (client->easy == NULL) {
            status = err_set(err, ERR_NOMEM, "the HTTP client could not be started");
        }
    }
    if (status != ERR_OK) {
        mem_free(client);
        return status;
    }
    client->ca_file = common->ca_file != NULL ? mem_dup(span_of(common->ca_file)) : NULL;
    *out = client;
    return ERR_OK;
}

void client_close(struct client **client)
{
    if (*client == NULL) {
        return;
    }
    curl_easy_cleanup((*client)->easy);
    mem_free((*client)->ca_file);
    mem_free(*client);
    *client = NULL;
}

/* ---- One call ---- */

static size_t take_body(char *data, size_t size, size_t count, void *ctx)
{
    struct buf *body = ctx;
    return buf_append(body, span_make(data, size * count)) == ERR_OK ? size * count : 0;
}

/* False when memory is gone. */
static bool add_header(struct curl_slist **headers, const char *line)
{
    struct curl_slist *longer = curl_slist_append(*headers, line);
    if (longer == NULL) {
        return false;
    }
    *headers = longer;
    return true;
}

static bool add_named(struct curl_slist **headers, const char *name, const char *value)
{
    struct buf line;
    buf_init_secret(&line, 70000);
    bool is_good = buf_printf(&line, "%s: %s", name, value) == ERR_OK;
    const char *text = is_good ? buf_text(&line) : NULL;
    is_good = text != NULL && add_header(headers, text);
    buf_release(&line);
    return is_good;
}

static bool make_headers(const struct client *client, const struct client_call *call,
                         struct curl_slist **out)
{
    /* An empty Expect keeps curl from waiting for a 100 before large bodies. */
    bool is_good = add_header(out, "Expect:") && add_header(out, "Accept: application/json");
    if (call->content_type != NULL) {
        is_good = is_good && add_named(out, "Content-Type", call->content_type);
    }
    const char *key = getenv("HEAVE_API_KEY");
    if (key != NULL && key[0] != '\0' && !client->needs_no_key) {
        struct buf value;
        buf_init_secret(&value, 70000);
        is_good = is_good && buf_printf(&value, "Bearer %s", key) == ERR_OK;
        const char *text = is_good ? buf_text(&value) : NULL;
        is_good = text != NULL && add_named(out, "Authorization", text);
        buf_release(&value);
    }
    return call->header != NULL ? is_good && add_header(out, call->header) : is_good;
}

static void set_options(struct client *client, const struct client_call *call, const char *url,
                        const struct curl_slist *headers, const struct curl_slist *connect_to,
                        struct buf *body)
{
    CURL *easy = client->easy;
    curl_easy_reset(easy);
    (void)curl_easy_setopt(easy, CURLOPT_URL, url);
    (void)curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
    (void)curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, client->error);
    (void)curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    (void)curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT, CLIENT_CONNECT_S);
    (void)curl_easy_setopt(easy, CURLOPT_TIMEOUT, CLIENT_TOTAL_S);
    (void)curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
    (void)curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, take_body);
    (void)curl_easy_setopt(easy, CURLOPT_WRITEDATA, body);
    if (connect_to != NULL) {
        (void)curl_easy_setopt(easy, CURLOPT_CONNECT_TO, connect_to);
        (void)curl_easy_setopt(easy, CURLOPT_PROXY, "");
    }
    if (client->ca_file != NULL) {
        (void)curl_easy_setopt(easy, CURLOPT_CAINFO, client->ca_file);
    }
    if (call->content_type != NULL) {
        (void)curl_easy_setopt(easy, CURLOPT_POSTFIELDS, call->body.data);
        (void)curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)call->body.len);
    }
    (void)curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, call->method);
}

static int transfer(struct client *client, struct client_reply *out, struct err *err)
{
    client->error[0] = '\0';
    CURLcode code = curl_easy_perform(client->easy);
    if (code == CURLE_WRITE_ERROR) {
        return err_set(err, ERR_LIMIT, "the answer of %s is too large", client->base);
    }
    if (code != CURLE_OK) {
        return err_set(err, ERR_UNAVAILABLE, "%s cannot be reached: %s", client->base,
                       client->error[0] != '\0' ? client->error : curl_easy_strerror(code));
    }
    curl_off_t retry_after = 0;
    (void)curl_easy_getinfo(client->easy, CURLINFO_RESPONSE_CODE, &out->status);
    (void)curl_easy_getinfo(client->easy, CURLINFO_RETRY_AFTER, &retry_after);
    out->retry_after_s = (long)retry_after;
    return ERR_OK;
}

int client_send(struct client *client, const struct client_call *call, struct client_reply *out,
                struct err *err)
{
    *out = (struct client_reply){0};
    buf_init(&out->body, CLIENT_BODY_MAX);
    struct curl_slist *headers = NULL;
    struct curl_slist *connect_to = NULL;
    struct buf url;
    buf_init(&url, CLIENT_BODY_MAX);
    bool is_ready = buf_printf(&url, "%s%s", client->base, call->path) == ERR_OK &&
                    make_headers(client, call, &headers);
    if (is_ready && client->connect_to[0] != '\0') {
        is_ready = add_header(&connect_to, client->connect_to);
    }
    const char *text = is_ready ? buf_text(&url) : NULL;
    int status = ERR_NOMEM;
    if (text != NULL) {
        set_options(client, call, text, headers, connect_to, &out->body);
        status = transfer(client, out, err);
    } else {
        (void)err_set(err, ERR_NOMEM, "there is not enough memory for the request");
    }
    buf_release(&url);
    curl_slist_free_all(headers);
    curl_slist_free_all(connect_to);
    return status;
}

void client_reply_release(struct client_reply *reply)
{
    buf_release(&reply->body);
}

int client_exit_code(long status)
{
    if (status >= 200 && status < 300) {
        return CLI_DONE;
    }
    return status == 429 || status == 503 ? CLI_TRY_LATER : CLI_REFUSED;
}

static const char *member_text(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text != NULL ? text : "";
}

int client_refused(const struct cli_command *command, const struct client_reply *reply)
{
    struct span body = buf_span(&reply->body);
    json_t *problem = json_loadb(body.data != NULL ? body.data : "", body.len, 0, NULL);
    const char *title = member_text(problem, "title");
    const char *detail = member_text(problem, "detail");
    (void)cli_fail(command, 0, "the gateway answers %ld %s%s%s", reply->status, title,
                   detail[0] != '\0' ? ": " : "", detail);
    const json_t *errors = json_object_get(problem, "errors");
    for (size_t i = 0; i < json_array_size(errors); i++) {
        const json_t *item = json_array_get(errors, i);
        (void)cli_fail(command, 0, "  %s: %s", member_text(item, "pointer"),
                       member_text(item, "detail"));
    }
    if (reply->retry_after_s > 0) {
        (void)cli_fail(command, 0, "try again in %ld s", reply->retry_after_s);
    }
    if (reply->status == 401 && getenv("HEAVE_API_KEY") == NULL) {
        (void)cli_fail(command, 0, "the environment variable HEAVE_API_KEY holds no key");
    }
    if (reply->status == 403 && getenv("HEAVE_API_KEY") != NULL) {
        (void)cli_fail(command, 0, "the client is the one whose key HEAVE_API_KEY holds");
    }
    json_decref(problem);
    return client_exit_code(reply->status);
}

int client_query(struct buf *path, const char *name, const char *value)
{
    bool is_first = span_find(buf_span(path), '?') == buf_len(path);
    int status = buf_printf(path, "%c%s=", is_first ? '?' : '&', name);
    return status == ERR_OK ? codec_percent_encode(span_of(value), path) : status;
}
