#include "gateway/base/resolve.h"

#include "gateway/base/buf.h"

#include <stdio.h>

struct resolve {
    uv_getaddrinfo_t request;
    resolve_fn *fn; /* NULL: cancelled; the callback frees this and nothing else happens */
    void *ctx;
};

bool resolve_literal(const char *host, uint16_t port, union resolve_address *out)
{
    union resolve_address address = {.v6 = {.sin6_family = AF_UNSPEC}};
    if (uv_ip4_addr(host, port, &address.v4) != 0 && uv_ip6_addr(host, port, &address.v6) != 0) {
        return false;
    }
    *out = address;
    return true;
}

static void on_result(uv_getaddrinfo_t *request, int status, struct addrinfo *list)
{
    struct resolve *resolve = request->data;
    union resolve_address addresses[RESOLVE_MAX];
    size_t count = 0;
    for (const struct addrinfo *at = list; at != NULL && count < RESOLVE_MAX; at = at->ai_next) {
        if (at->ai_addrlen <= sizeof(addresses[0])) {
            memcpy(&addresses[count++], at->ai_addr, at->ai_addrlen);
        }
    }
    uv_freeaddrinfo(list);
    const char *why = count == 0 ? "it has no address" : NULL;
    resolve_fn *fn = resolve->fn;
    void *ctx = resolve->ctx;
    mem_free(resolve);
    if (fn != NULL) {
        fn(ctx, addresses, count, status < 0 ? uv_strerror(status) : why);
    }
}

int resolve_start(struct loop *loop, const char *host, uint16_t port, resolve_fn *fn, void *ctx,
                  struct resolve **out)
{
    struct resolve *resolve = mem_zero(sizeof(*resolve));
    resolve->fn = fn;
    resolve->ctx = ctx;
    resolve->request.data = resolve;
    char service[8];
    (void)snprintf(service, sizeof(service), "%u", (unsigned)port);
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    if (uv_getaddrinfo(loop_uv(loop), &resolve->request, on_result, host, service, &hints) != 0) {
        mem_free(resolve);
        return ERR_IO;
    }
    *out = resolve;
    return ERR_OK;
}

void resolve_cancel(struct resolve **resolve_ptr)
{
    struct resolve *resolve = *resolve_ptr;
    if (resolve == NULL) {
        return;
    }
    resolve->fn = NULL;
    (void)uv_cancel((uv_req_t *)&resolve->request); /* too late is fine: nobody is told */
    *resolve_ptr = NULL;
}

void resolve_text(const union resolve_address *address, char out[RESOLVE_TEXT_MAX],
                  char out_address[INET6_ADDRSTRLEN])
{
    bool six = address->any.sa_family == AF_INET6;
    unsigned port = ntohs(six ? address->v6.sin6_port : address->v4.sin_port);
    const void *bytes = six ? (const void *)&address->v6.sin6_addr : &address->v4.sin_addr;
    if (six && IN6_IS_ADDR_V4MAPPED(&address->v6.sin6_addr)) {
        bytes = &address->v6.sin6_addr.s6_addr[12];
        six = false;
    }
    ASSERT(uv_inet_ntop(six ? AF_INET6 : AF_INET, bytes, out_address, INET6_ADDRSTRLEN) == 0);
    (void)snprintf(out, RESOLVE_TEXT_MAX, six ? "[%s]:%u" : "%s:%u", out_address, port);
}
