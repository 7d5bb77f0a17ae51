#include "backends/http_client.h"

#include "gateway/base/clock.h"
#include "gateway/base/failpoint.h"

#include <curl/curl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/socket.h>
#include <uv.h>

/* Invariants:
 * - libcurl must not be called from its own callbacks (CURLM_RECURSIVE_API_CALL). on_start() runs
 * inside one, and whatever it leads to may send another request. So http_client_send() only queues,
 * and a task at the end of the turn hands the requests to libcurl.
 * - on_done() runs from that task as well, never inside libcurl, so it may do anything, close
 * included. */

#define CONNECT_TIMEOUT_DEFAULT_MS 30000
#define REPLY_TIMEOUT_DEFAULT_MS 60000
#define RETRY_AFTER_MAX_MS ((int64_t)7 * 24 * 3600 * 1000)

enum exchange_state {
    EXCHANGE_WAITING,  /* queued for libcurl */
    EXCHANGE_RUNNING,  /* libcurl has it */
    EXCHANGE_FINISHED, /* on_done() is due */
};

struct exchange {
    struct exchange *next;
    struct exchange *prev;
    struct http_client *client;
    struct http_request *request;
    enum exchange_state state;
    CURL *easy;
    struct curl_slist *headers;
    size_t body_sent; /* bytes of the body handed to libcurl */
    bool started;     /* on_start() said yes */
    bool complete;    /* the last byte was handed over: the service may act */
    struct buf answer;
    struct http_result result;
    char trouble[CURL_ERROR_SIZE]; /* libcurl's own words */
    struct loop_timer timer;       /* no progress */
    int64_t progress_ms;           /* loop time of the last */
    uint16_t local_port;           /* of the connection it went out on; 0: none yet */
};

/* By local port, modulo this; two that share a place only make a dead one look alive for longer. */
#define HEARD_PLACES 64

struct http_client {
    struct loop *loop;
    CURLM *multi;
    struct loop_timer timer;   /* libcurl's */
    struct loop_task task;     /* hand over and report */
    struct exchange exchanges; /* head of a ring */
    size_t pending;
    size_t polls; /* uv handles not yet closed */
    struct socket_poll *sockets;
    int64_t heard_ms[HEARD_PLACES]; /* loop time of the last answer on a connection */
    bool closing;
    void (*on_closed)(void *ctx);
    void *closed_ctx;
};

struct socket_poll {
    struct socket_poll *next; /* in the client's list, until libcurl lets go of the socket */
    uv_poll_t handle;
    struct http_client *client;
    curl_socket_t fd;
};

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;

static void curl_prepare(void)
{
    ASSERT(curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK);
}

/* ---- The end of a request ---- */

static void client_task(void *ctx);

static void client_defer(struct http_client *client)
{
    loop_defer(client->loop, &client->task, LOOP_TASK_WRITE, client_task, client);
}

/* Takes the exchange from libcurl and keeps what became of it. `why` for people. */
static void exchange_finish(struct exchange *exchange, const char *why)
{
    struct http_client *client = exchange->client;
    struct http_result *result = &exchange->result;
    loop_timer_stop(&exchange->timer);
    long status = 0;
    if (exchange->state == EXCHANGE_RUNNING) {
        curl_easy_getinfo(exchange->easy, CURLINFO_RESPONSE_CODE, &status);
        curl_multi_remove_handle(client->multi, exchange->easy);
    }
    exchange->state = EXCHANGE_FINISHED;
    if (status >= 200 && exchange->started) {
        result->outcome = HTTP_ANSWERED;
        result->status = (uint32_t)status;
        result->body = buf_span(&exchange->answer);
    } else {
        result->outcome = exchange->complete ? HTTP_LOST : HTTP_NOT_SENT;
        snprintf(result->why, sizeof(result->why), "%s", why);
    }
    client_defer(client);
}

static void exchange_free(struct exchange *exchange)
{
    exchange->prev->next = exchange->next;
    exchange->next->prev = exchange->prev;
    exchange->client->pending--;
    loop_timer_stop(&exchange->timer);
    if (exchange->easy != NULL) {
        curl_easy_cleanup(exchange->easy);
    }
    curl_slist_free_all(exchange->headers);
    buf_release(&exchange->answer);
    mem_free(exchange);
}

/* A connection is known by its local port: libcurl does not tell the socket of a running request.
 */
static void note_heard(struct exchange *exchange)
{
    struct http_client *client = exchange->client;
    client->heard_ms[exchange->local_port % HEARD_PLACES] = loop_now_ms(client->loop);
}

static uint16_t local_port_of(curl_socket_t fd)
{
    struct sockaddr_storage address = {0};
    socklen_t len = sizeof(address);
    if (getsockname(fd, (struct sockaddr *)&address, &len) != 0) {
        return 0;
    }
    return address.ss_family == AF_INET6 ? ntohs(((struct sockaddr_in6 *)&address)->sin6_port)
                                         : ntohs(((struct sockaddr_in *)&address)->sin_port);
}

/* A connection that took a request and has said nothing to anybody since is dead, though its socket
 * does not know (half open, or a balancer without its service): with HTTP/2, libcurl would go on
 * sending requests into it. Shut down, it is not used again. */
static void bury_connection(const struct exchange *exchange)
{
    const struct http_client *client = exchange->client;
    if (exchange->local_port == 0 ||
        client->heard_ms[exchange->local_port % HEARD_PLACES] >= exchange->progress_ms) {
        return;
    }
    for (struct socket_poll *poll = client->sockets; poll != NULL; poll = poll->next) {
        if (local_port_of(poll->fd) == exchange->local_port) {
            (void)shutdown(poll->fd, SHUT_RDWR);
        }
    }
}

static void on_no_progress(void *ctx)
{
    struct exchange *exchange = ctx;
    bury_connection(exchange);
    exchange_finish(exchange, exchange->started
                                  ? "The server did not answer in time."
                                  : "No connection to the server could be made in time.");
}

static void note_progress(struct exchange *exchange)
{
    int64_t timeout_ms = exchange->request->reply_timeout_ms;
    exchange->progress_ms = loop_now_ms(exchange->client->loop);
    loop_timer_start(exchange->client->loop, &exchange->timer,
                     timeout_ms > 0 ? timeout_ms : REPLY_TIMEOUT_DEFAULT_MS, on_no_progress,
                     exchange);
}

/* ---- libcurl's callbacks of one request ---- */

/* A connection is there, nothing of the request was sent. Runs again when libcurl repeats a request
 * because a kept connection was dead. */
static int on_prereq(void *ctx, char *remote, char *local, int remote_port, int local_port)
{
    struct exchange *exchange = ctx;
    struct http_request *request = exchange->request;
    (void)remote;
    (void)local;
    (void)remote_port;
    exchange->local_port = (uint16_t)local_port;
    if (exchange->complete && !request->repeatable) {
        return CURL_PREREQFUNC_ABORT;
    }
    if (!exchange->started && request->on_start != NULL && request->on_start(request) != 0) {
        exchange->result.start_refused = true;
        return CURL_PREREQFUNC_ABORT;
    }
    exchange->started = true;
    exchange->complete = exchange->complete || request->body.len == 0;
    note_progress(exchange);
    return CURL_PREREQFUNC_OK;
}

static size_t on_read(char *room, size_t size, size_t count, void *ctx)
{
    struct exchange *exchange = ctx;
    struct span body = exchange->request->body;
    size_t left = body.len - exchange->body_sent;
    size_t len = left < size * count ? left : size * count;
    memcpy(room, body.data + exchange->body_sent, len);
    exchange->body_sent += len;
    exchange->complete = exchange->complete || exchange->body_sent == body.len;
    if (exchange->complete) {
        FAILPOINT("http-body-sent");
    }
    note_progress(exchange);
    return len;
}

/* libcurl rewinds to send the request again on another connection. */
static int on_seek(void *ctx, curl_off_t offset, int origin)
{
    struct exchange *exchange = ctx;
    bool allowed = !exchange->complete || exchange->request->repeatable;
    if (origin != SEEK_SET || offset < 0 || !allowed ||
        (uint64_t)offset > exchange->request->body.len) {
        return CURL_SEEKFUNC_FAIL;
    }
    exchange->body_sent = (size_t)offset;
    return CURL_SEEKFUNC_OK;
}

static size_t on_answer(char *data, size_t size, size_t count, void *ctx)
{
    struct exchange *exchange = ctx;
    note_progress(exchange);
    note_heard(exchange);
    if (buf_append(&exchange->answer, span_make(data, size * count)) != 0) {
        return 0; /* ends the transfer; the status is known already */
    }
    return size * count;
}

static void keep_text(char *out, size_t room, struct span value)
{
    size_t len = 0;
    for (size_t i = 0; i < value.len && len + 1 < room; i++) {
        out[len++] = value.data[i] >= 32 && value.data[i] < 127 ? value.data[i] : '?';
    }
    out[len] = '\0';
}

static size_t on_header(char *data, size_t size, size_t count, void *ctx)
{
    struct exchange *exchange = ctx;
    struct http_result *result = &exchange->result;
    struct span line = span_make(data, size * count);
    struct span value = line;
    note_progress(exchange);
    note_heard(exchange);
    if (span_istarts(line,
                     SPAN_LIT("HTTP/"))) { /* also after 1xx: what came before counts no more */
        result->retry_after_ms = -1;
        result->request_id[0] = '\0';
        result->error_code[0] = '\0';
        return line.len;
    }
    struct span name = span_trim(span_cut(&value, ':'));
    value = span_trim(value);
    if (span_ieq(name, SPAN_LIT("retry-after")) && result->retry_after_ms < 0) {
        result->retry_after_ms = http_retry_after_ms(value, clock_wall_ms());
    } else if (span_ieq(name, SPAN_LIT("retry-after-ms")) ||
               span_ieq(name, SPAN_LIT("x-ms-retry-after-ms"))) {
        uint64_t ms = 0;
        if (span_to_u64(value, (uint64_t)RETRY_AFTER_MAX_MS, &ms) == 0) {
            result->retry_after_ms = (int64_t)ms;
        }
    } else if (span_ieq(name, SPAN_LIT("x-ms-request-id")) ||
               span_ieq(name, SPAN_LIT("request-id"))) {
        keep_text(result->request_id, sizeof(result->request_id), value);
    } else if (span_ieq(name, SPAN_LIT("x-ms-error-code"))) {
        keep_text(result->error_code, sizeof(result->error_code), value);
    }
    return line.len;
}

int64_t http_retry_after_ms(struct span value, int64_t wall_now_ms)
{
    uint64_t seconds = 0;
    int64_t when_ms = 0;
    value = span_trim(value);
    if (span_to_u64(value, (uint64_t)INT64_MAX, &seconds) == 0) {
        bool far = seconds > (uint64_t)RETRY_AFTER_MAX_MS / 1000;
        return far ? RETRY_AFTER_MAX_MS : (int64_t)seconds * 1000;
    }
    if (clock_parse_http(value, &when_ms) != 0) {
        return -1;
    }
    int64_t wait_ms = when_ms > wall_now_ms ? when_ms - wall_now_ms : 0;
    return wait_ms < RETRY_AFTER_MAX_MS ? wait_ms : RETRY_AFTER_MAX_MS;
}

/* ---- Handing a request to libcurl ---- */

static bool headers_build(struct exchange *exchange)
{
    const struct http_request *request = exchange->request;
    /* Without this libcurl waits up to a second for "100 Continue" before a large body. */
    struct curl_slist *list = curl_slist_append(NULL, "Expect:");
    bool ok = list != NULL;
    for (size_t i = 0; i < request->header_count && ok; i++) {
        const struct http_header *header = &request->headers[i];
        struct buf line;
        buf_init_secret(&line, (size_t)64 << 10);
        const char *text = NULL;
        ok = span_find(header->value, '\n') == header->value.len &&
             span_find(header->value, '\r') == header->value.len &&
             buf_printf(&line, "%.*s: %.*s", SPAN_FMT(header->name), SPAN_FMT(header->value)) ==
                 0 &&
             (text = buf_text(&line)) != NULL;
        struct curl_slist *longer = ok ? curl_slist_append(list, text) : NULL;
        ok = longer != NULL;
        list = ok ? longer : list;
        buf_release(&line);
    }
    exchange->headers = list;
    return ok;
}

static bool options_set(struct exchange *exchange)
{
    const struct http_request *request = exchange->request;
    CURL *easy = exchange->easy;
    int64_t connect_ms = request->connect_timeout_ms;
    connect_ms = connect_ms > 0 ? connect_ms : CONNECT_TIMEOUT_DEFAULT_MS;
    bool ok = curl_easy_setopt(easy, CURLOPT_URL, request->url) == CURLE_OK &&
              curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "https") == CURLE_OK &&
              curl_easy_setopt(easy, CURLOPT_PATH_AS_IS, 1L) == CURLE_OK &&
              curl_easy_setopt(easy, CURLOPT_PROXY, "") == CURLE_OK &&
              curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L) == CURLE_OK &&
              curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, 1L) == CURLE_OK &&
              curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 2L) == CURLE_OK &&
              curl_easy_setopt(easy, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2) ==
                  CURLE_OK &&
              curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_2TLS) ==
                  CURLE_OK &&
              curl_easy_setopt(easy, CURLOPT_PIPEWAIT, 1L) == CURLE_OK &&
              curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L) == CURLE_OK &&
              curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, (long)connect_ms) == CURLE_OK &&
              curl_easy_setopt(easy, CURLOPT_USERAGENT, "heave/" HEAVE_VERSION) == CURLE_OK &&
              curl_easy_setopt(easy, CURLOPT_HTTPHEADER, exchange->headers) == CURLE_OK &&
              curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, exchange->trouble) == CURLE_OK &&
              curl_easy_setopt(easy, CURLOPT_PRIVATE, exchange) == CURLE_OK;
    if (ok && request->ca_file != NULL) {
        /* Without this the system's roots in curl's default folder stay trusted beside the file. */
        ok = curl_easy_setopt(easy, CURLOPT_CAPATH, NULL) == CURLE_OK &&
             curl_easy_setopt(easy, CURLOPT_CAINFO, request->ca_file) == CURLE_OK;
    }
    return ok;
}

static bool callbacks_set(struct exchange *exchange)
{
    const struct http_request *request = exchange->request;
    CURL *easy = exchange->easy;
    bool ok = curl_easy_setopt(easy, CURLOPT_PREREQFUNCTION, on_prereq) == CURLE_OK &&
              curl_easy_setopt(easy, CURLOPT_PREREQDATA, exchange) == CURLE_OK &&
              curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_answer) == CURLE_OK &&
              curl_easy_setopt(easy, CURLOPT_WRITEDATA, exchange) == CURLE_OK &&
              curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_header) == CURLE_OK &&
              curl_easy_setopt(easy, CURLOPT_HEADERDATA, exchange) == CURLE_OK;
    if (strcmp(request->method, "POST") != 0) {
        ASSERT(strcmp(request->method, "GET") == 0 && request->body.len == 0);
        return ok && curl_easy_setopt(easy, CURLOPT_HTTPGET, 1L) == CURLE_OK;
    }
    return ok && curl_easy_setopt(easy, CURLOPT_POST, 1L) == CURLE_OK &&
           curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)request->body.len) ==
               CURLE_OK &&
           curl_easy_setopt(easy, CURLOPT_READFUNCTION, on_read) == CURLE_OK &&
           curl_easy_setopt(easy, CURLOPT_READDATA, exchange) == CURLE_OK &&
           curl_easy_setopt(easy, CURLOPT_SEEKFUNCTION, on_seek) == CURLE_OK &&
           curl_easy_setopt(easy, CURLOPT_SEEKDATA, exchange) == CURLE_OK;
}

static void exchange_run(struct exchange *exchange)
{
    struct http_client *client = exchange->client;
    exchange->easy = curl_easy_init();
    bool ok = exchange->easy != NULL && headers_build(exchange) && options_set(exchange) &&
              callbacks_set(exchange) &&
              curl_multi_add_handle(client->multi, exchange->easy) == CURLM_OK;
    if (!ok) {
        exchange_finish(exchange,
                        "The request could not be set up: memory is short, or its address "
                        "or a header is malformed.");
        return;
    }
    exchange->state = EXCHANGE_RUNNING;
}

/* ---- libcurl's sockets and timer on the loop ---- */

static void collect_finished(struct http_client *client)
{
    int left = 0;
    CURLMsg *message = NULL;
    while ((message = curl_multi_info_read(client->multi, &left)) != NULL) {
        struct exchange *exchange = NULL;
        if (message->msg != CURLMSG_DONE ||
            curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &exchange) != CURLE_OK) {
            continue;
        }
        exchange_finish(exchange, exchange->trouble[0] != '\0'
                                      ? exchange->trouble
                                      : curl_easy_strerror(message->data.result));
    }
}

static void act(struct http_client *client, curl_socket_t fd, int events)
{
    int running = 0;
    curl_multi_socket_action(client->multi, fd, events, &running);
    collect_finished(client);
}

static void on_poll(uv_poll_t *handle, int status, int events)
{
    struct socket_poll *poll = handle->data;
    int flags = status < 0 ? CURL_CSELECT_ERR : 0;
    flags |= (events & UV_READABLE) != 0 ? CURL_CSELECT_IN : 0;
    flags |= (events & UV_WRITABLE) != 0 ? CURL_CSELECT_OUT : 0;
    act(poll->client, poll->fd, flags); /* may close `poll` */
}

static void client_check_closed(struct http_client *client);

static void on_poll_closed(uv_handle_t *handle)
{
    struct socket_poll *poll = handle->data;
    struct http_client *client = poll->client;
    client->polls--;
    mem_free(poll);
    client_check_closed(client);
}

static int on_socket(CURL *easy, curl_socket_t fd, int what, void *ctx, void *socket_ctx)
{
    struct http_client *client = ctx;
    struct socket_poll *poll = socket_ctx;
    (void)easy;
    if (what == CURL_POLL_REMOVE) {
        if (poll != NULL) {
            struct socket_poll **link = &client->sockets;
            while (*link != poll) {
                link = &(*link)->next;
            }
            *link = poll->next;
            curl_multi_assign(client->multi, fd, NULL);
            uv_poll_stop(&poll->handle);
            uv_close((uv_handle_t *)&poll->handle, on_poll_closed);
        }
        return 0;
    }
    if (poll == NULL) {
        poll = mem_zero(sizeof(*poll));
        poll->client = client;
        poll->fd = fd;
        if (uv_poll_init_socket(loop_uv(client->loop), &poll->handle, fd) != 0) {
            mem_free(poll);
            return -1;
        }
        poll->handle.data = poll;
        poll->next = client->sockets;
        client->sockets = poll;
        client->polls++;
        curl_multi_assign(client->multi, fd, poll);
    }
    int events = ((what & CURL_POLL_IN) != 0 ? UV_READABLE : 0) |
                 ((what & CURL_POLL_OUT) != 0 ? UV_WRITABLE : 0);
    return uv_poll_start(&poll->handle, events, on_poll) == 0 ? 0 : -1;
}

static void on_timer(void *ctx)
{
    struct http_client *client = ctx;
    act(client, CURL_SOCKET_TIMEOUT, 0);
}

static int on_timer_wanted(CURLM *multi, long timeout_ms, void *ctx)
{
    struct http_client *client = ctx;
    (void)multi;
    if (timeout_ms < 0) {
        loop_timer_stop(&client->timer);
    } else {
        loop_timer_start(client->loop, &client->timer, timeout_ms, on_timer, client);
    }
    return 0;
}

/* ---- The client ---- */

struct http_client *http_client_new(struct loop *loop, uint32_t max_connections)
{
    pthread_once(&curl_once, curl_prepare);
    struct http_client *client = mem_zero(sizeof(*client));
    client->loop = loop;
    client->exchanges.next = &client->exchanges;
    client->exchanges.prev = &client->exchanges;
    client->multi = curl_multi_init();
    ASSERT(client->multi != NULL);
    curl_multi_setopt(client->multi, CURLMOPT_SOCKETFUNCTION, on_socket);
    curl_multi_setopt(client->multi, CURLMOPT_SOCKETDATA, client);
    curl_multi_setopt(client->multi, CURLMOPT_TIMERFUNCTION, on_timer_wanted);
    curl_multi_setopt(client->multi, CURLMOPT_TIMERDATA, client);
    curl_multi_setopt(client->multi, CURLMOPT_PIPELINING, (long)CURLPIPE_MULTIPLEX);
    curl_multi_setopt(client->multi, CURLMOPT_MAX_HOST_CONNECTIONS, (long)max_connections);
    return client;
}

void http_client_request_header(struct http_request *request, struct span name, struct span value)
{
    ASSERT(request->header_count < HTTP_REQUEST_HEADERS_MAX);
    request->headers[request->header_count++] = (struct http_header){.name = name, .value = value};
}

void http_client_send(struct http_client *client, struct http_request *request)
{
    ASSERT(!client->closing);
    struct exchange *exchange = mem_zero(sizeof(*exchange));
    exchange->client = client;
    exchange->request = request;
    exchange->state = EXCHANGE_WAITING;
    exchange->result.retry_after_ms = -1;
    buf_init_secret(&exchange->answer, HTTP_ANSWER_MAX);
    exchange->next = &client->exchanges;
    exchange->prev = client->exchanges.prev;
    exchange->prev->next = exchange;
    exchange->next->prev = exchange;
    client->pending++;
    request->http_private = exchange;
    /* libcurl bounds connecting; this bounds waiting for a connection that others have. */
    int64_t connect_ms = request->connect_timeout_ms;
    int64_t reply_ms = request->reply_timeout_ms;
    loop_timer_start(client->loop, &exchange->timer,
                     (connect_ms > 0 ? connect_ms : CONNECT_TIMEOUT_DEFAULT_MS) +
                         (reply_ms > 0 ? reply_ms : REPLY_TIMEOUT_DEFAULT_MS),
                     on_no_progress, exchange);
    client_defer(client);
}

void http_client_cancel(struct http_client *client, struct http_request *request)
{
    struct exchange *exchange = request->http_private;
    ASSERT(exchange != NULL && exchange->client == client);
    if (exchange->state != EXCHANGE_FINISHED) {
        exchange_finish(exchange, "The request was given up.");
    }
}

size_t http_client_pending(const struct http_client *client)
{
    return client->pending;
}

static void exchange_report(struct exchange *exchange)
{
    struct http_request *request = exchange->request;
    FAILPOINT("http-answered");
    request->http_private = NULL;
    /* Unlinked first: the callback may send again, or close the client. */
    exchange->prev->next = exchange->next;
    exchange->next->prev = exchange->prev;
    exchange->next = exchange;
    exchange->prev = exchange;
    request->on_done(request, &exchange->result);
    exchange_free(exchange);
}

static void client_task(void *ctx)
{
    struct http_client *client = ctx;
    struct exchange *exchange = client->exchanges.next;
    while (exchange != &client->exchanges) {
        struct exchange *next = exchange->next;
        if (exchange->state == EXCHANGE_WAITING) {
            exchange_run(exchange);
        }
        exchange = next;
    }
    /* From the front each time, because a callback may change the list anywhere. */
    for (;;) {
        exchange = client->exchanges.next;
        while (exchange != &client->exchanges && exchange->state != EXCHANGE_FINISHED) {
            exchange = exchange->next;
        }
        if (exchange == &client->exchanges) {
            break;
        }
        exchange_report(exchange);
    }
    client_check_closed(client);
}

static void client_check_closed(struct http_client *client)
{
    if (!client->closing || client->pending > 0) {
        return;
    }
    if (client->multi != NULL) {
        CURLM *multi = client->multi;
        curl_multi_cleanup(multi); /* removes the sockets of kept connections */
        client->multi = NULL;
        loop_timer_stop(&client->timer);
    }
    if (client->polls > 0) {
        return; /* called again when they are closed */
    }
    loop_task_cancel(&client->task);
    void (*on_closed)(void *ctx) = client->on_closed;
    void *closed_ctx = client->closed_ctx;
    mem_free(client);
    if (on_closed != NULL) {
        on_closed(closed_ctx);
    }
}

void http_client_close(struct http_client **client, void (*on_closed)(void *ctx), void *ctx)
{
    struct http_client *c = *client;
    *client = NULL;
    if (c == NULL) {
        return;
    }
    c->closing = true;
    c->on_closed = on_closed;
    c->closed_ctx = ctx;
    for (struct exchange *e = c->exchanges.next; e != &c->exchanges; e = e->next) {
        if (e->state != EXCHANGE_FINISHED) {
            exchange_finish(e, "The gateway is stopping.");
        }
    }
    client_defer(c);
}
