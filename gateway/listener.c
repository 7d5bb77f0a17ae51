#include "gateway/listener.h"

#include "gateway/base/buf.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>
#include <uv.h>

/* libuv stops polling a listening socket whose waiting connection was not accepted, and goes on
 * after uv_accept(). That is how accepting pauses: while `pause` runs, the callback only notes that
 * somebody waits. */

#define LISTENER_BACKLOG 4096
#define LISTENER_PAUSE_MS 100
#define LISTENER_HOST_MAX 256

struct listener {
    struct loop *loop;
    uv_tcp_t socket;
    listener_accept_fn accept;
    void *ctx;
    struct loop_timer pause;
    bool waiting; /* a connection was announced during the pause */
    bool closing;
    uint16_t port;
};

/* "host:port", "[v6]:port", "*:port". An empty host or "*" is every address. */
static int listener_split(const char *text, char host[LISTENER_HOST_MAX], struct span *out_port,
                          struct err *err)
{
    const char *colon = strrchr(text, ':');
    struct span name = {.data = NULL, .len = 0};
    if (colon != NULL) {
        name = span_make(text, (size_t)(colon - text));
    }
    uint64_t port = 0;
    struct span port_text = span_of(colon != NULL ? colon + 1 : "");
    if (colon == NULL || span_to_u64(port_text, 65535, &port) != 0) {
        return err_set(err, ERR_INVAL, "The address '%s' to listen on is not host:port.", text);
    }
    if (name.len >= 2 && name.data[0] == '[' && name.data[name.len - 1] == ']') {
        name = span_make(name.data + 1, name.len - 2);
    } else if (span_find(name, ':') != name.len) {
        return err_set(err, ERR_INVAL, "The IPv6 address in '%s' must stand in brackets.", text);
    }
    if (name.len >= LISTENER_HOST_MAX) {
        return err_set(err, ERR_INVAL, "The host name in '%s' is too long.", text);
    }
    bool any = span_eq(name, SPAN_LIT("*"));
    memcpy(host, name.data, any ? 0 : name.len);
    host[any ? 0 : name.len] = '\0';
    *out_port = port_text;
    return 0;
}

/* A bound socket for one address, or -1 with errno. */
static int listener_bind(const struct addrinfo *address, bool dual)
{
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return -1;
    }
    int on = 1;
    int v6_only = dual ? 0 : 1;
    bool good = setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == 0 &&
                setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on)) == 0;
    if (good && address->ai_family == AF_INET6) {
        good = setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &v6_only, sizeof(v6_only)) == 0;
    }
    if (good && bind(fd, address->ai_addr, address->ai_addrlen) == 0) {
        return fd;
    }
    int saved = errno;
    (void)close(fd); /* nothing was written to it */
    errno = saved;
    return -1;
}

/* Tries the addresses of `host`: for every address ("") IPv6 with IPv4 inside first, then IPv4
 * alone. */
static int listener_socket(const char *text, const char *host, const char *port, int *out_fd,
                           struct err *err)
{
    struct addrinfo hints = {
        .ai_flags = AI_PASSIVE, .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *list = NULL;
    bool any = host[0] == '\0';
    int rc = getaddrinfo(any ? NULL : host, port, &hints, &list);
    if (rc != 0) {
        return err_set(err, ERR_INVAL, "The address '%s' to listen on cannot be resolved: %s.",
                       text, gai_strerror(rc));
    }
    int fd = -1;
    int saved = EADDRNOTAVAIL;
    static const int families[] = {AF_INET6, AF_INET};
    for (size_t i = 0; i < 2 && fd < 0; i++) {
        /* A named address is bound as the resolver ranks it; only "every address" has a preference.
         */
        for (struct addrinfo *a = list; a != NULL && fd < 0; a = a->ai_next) {
            if (any && a->ai_family != families[i]) {
                continue;
            }
            fd = listener_bind(a, any);
            saved = fd < 0 ? errno : saved;
        }
    }
    freeaddrinfo(list);
    if (fd < 0) {
        return err_set(err, ERR_IO, "Listening on '%s' is not possible: %s.", text,
                       strerror(saved));
    }
    *out_fd = fd;
    return 0;
}

/* Takes a waiting connection and drops it, so that the socket is polled again. */
static void listener_on_dropped(uv_handle_t *handle)
{
    mem_free(handle);
}

static void listener_drop(struct listener *listener)
{
    uv_tcp_t *dropped = mem_alloc(sizeof(*dropped));
    int rc = uv_tcp_init(loop_uv(listener->loop), dropped);
    ASSERT(rc == 0);
    (void)uv_accept((uv_stream_t *)&listener->socket, (uv_stream_t *)dropped); /* none may wait */
    uv_close((uv_handle_t *)dropped, listener_on_dropped);
}

static void listener_hand_on(struct listener *listener)
{
    if (listener->accept(listener->ctx, (uv_stream_t *)&listener->socket) != 0) {
        listener_drop(listener);
    }
}

static void listener_on_pause_end(void *ctx)
{
    struct listener *listener = ctx;
    if (listener->waiting) {
        listener->waiting = false;
        listener_hand_on(listener);
    }
}

static void listener_on_connection(uv_stream_t *socket, int status)
{
    struct listener *listener = socket->data;
    if (listener->closing) {
        return;
    }
    if (status != 0) {
        /* Descriptors or memory ran out; the connections in the kernel's queue wait. */
        loop_timer_start(listener->loop, &listener->pause, LISTENER_PAUSE_MS, listener_on_pause_end,
                         listener);
        return;
    }
    if (loop_timer_active(&listener->pause)) {
        listener->waiting = true;
        return;
    }
    listener_hand_on(listener);
}

static void listener_on_closed(uv_handle_t *handle)
{
    mem_free(handle->data);
}

void listener_close(struct listener **listener)
{
    struct listener *l = *listener;
    if (l == NULL) {
        return;
    }
    *listener = NULL;
    l->closing = true;
    loop_timer_stop(&l->pause);
    uv_close((uv_handle_t *)&l->socket, listener_on_closed);
}

static uint16_t listener_bound_port(uv_tcp_t *socket)
{
    struct sockaddr_storage address;
    int len = sizeof(address);
    if (uv_tcp_getsockname(socket, (struct sockaddr *)&address, &len) != 0) {
        return 0;
    }
    if (address.ss_family == AF_INET6) {
        return ntohs(((struct sockaddr_in6 *)&address)->sin6_port);
    }
    return ntohs(((struct sockaddr_in *)&address)->sin_port);
}

int listener_open(struct loop *loop, const char *bind_text, listener_accept_fn accept, void *ctx,
                  struct listener **out, struct err *err)
{
    char host[LISTENER_HOST_MAX];
    struct span port = {.data = NULL, .len = 0};
    int rc = listener_split(bind_text, host, &port, err);
    if (rc != 0) {
        return rc;
    }
    int fd = -1;
    rc = listener_socket(bind_text, host, port.data, &fd, err);
    if (rc != 0) {
        return rc;
    }
    struct listener *listener = mem_zero(sizeof(*listener));
    listener->loop = loop;
    listener->accept = accept;
    listener->ctx = ctx;
    rc = uv_tcp_init(loop_uv(loop), &listener->socket);
    ASSERT(rc == 0);
    listener->socket.data = listener;
    rc = uv_tcp_open(&listener->socket, fd);
    if (rc != 0) {
        (void)close(fd); /* libuv did not take it */
    } else {
        rc = uv_listen((uv_stream_t *)&listener->socket, LISTENER_BACKLOG, listener_on_connection);
    }
    if (rc != 0) {
        listener_close(&listener);
        return err_set(err, ERR_IO, "Listening on '%s' is not possible: %s.", bind_text,
                       uv_strerror(rc));
    }
    listener->port = listener_bound_port(&listener->socket);
    *out = listener;
    return 0;
}

uint16_t listener_port(const struct listener *listener)
{
    return listener->port;
}
