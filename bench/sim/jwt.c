#include "bench/sim/jwt.h"

#include "gateway/base/codec.h"

#include <jansson.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <stdlib.h>

#define TOKEN_BYTES_MAX ((size_t)16 * 1024)

static int sign(struct span key, struct span text, unsigned char out[EVP_MAX_MD_SIZE],
                unsigned *out_len)
{
    if (HMAC(EVP_sha256(), key.data, (int)key.len, (const unsigned char *)text.data, text.len, out,
             out_len) == NULL) {
        return ERR_NOMEM;
    }
    return 0;
}

static json_t *roles_json(struct span roles)
{
    json_t *list = json_array();
    while (roles.len > 0) {
        struct span role = span_cut(&roles, ',');
        ASSERT(json_array_append_new(list, json_stringn(role.data, role.len)) == 0);
    }
    return list;
}

static int append_encoded(json_t *take, struct buf *out)
{
    char *text = json_dumps(take, JSON_COMPACT);
    json_decref(take);
    ASSERT(text != NULL);
    int result = codec_base64url_encode(span_of(text), out);
    free(text);
    return result;
}

int jwt_issue(struct span key, const struct jwt *jwt, struct buf *out)
{
    char issuer[200];
    char random[33];
    uint8_t bytes[16];
    codec_random(bytes, sizeof(bytes));
    codec_hex(bytes, sizeof(bytes), random);
    (void)snprintf(issuer, sizeof(issuer), "https://sts.windows.net/%s/", jwt->tenant);
    json_t *claims = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:s}", "aud",
                               jwt->audience, "iss", issuer, "tid", jwt->tenant, "appid", jwt->app,
                               "idtyp", "app", "ver", "1.0", "iat", (json_int_t)jwt->issued_s,
                               "nbf", (json_int_t)jwt->issued_s, "exp", (json_int_t)jwt->expires_s,
                               "uti", random);
    ASSERT(claims != NULL);
    if (jwt->roles[0] != '\0') {
        ASSERT(json_object_set_new(claims, "roles", roles_json(span_of(jwt->roles))) == 0);
    }
    struct buf text;
    buf_init(&text, TOKEN_BYTES_MAX);
    int result = append_encoded(
        json_pack("{s:s, s:s, s:s}", "typ", "JWT", "alg", "HS256", "kid", "sim"), &text);
    if (result == 0) {
        result = buf_append_byte(&text, '.');
    }
    if (result == 0) {
        result = append_encoded(claims, &text);
    } else {
        json_decref(claims);
    }
    unsigned char mac[EVP_MAX_MD_SIZE];
    unsigned mac_len = 0;
    if (result == 0) {
        result = sign(key, buf_span(&text), mac, &mac_len);
    }
    if (result == 0) {
        result = buf_append_byte(&text, '.');
    }
    if (result == 0) {
        result = codec_base64url_encode(span_make((const char *)mac, mac_len), &text);
    }
    if (result == 0) {
        result = buf_append(out, buf_span(&text));
    }
    buf_release(&text);
    return result;
}

bool jwt_secret_eq(struct span a, struct span b)
{
    return a.len == b.len && CRYPTO_memcmp(a.data, b.data, a.len) == 0;
}

static int verify(struct span key, struct span signed_part, struct span signature)
{
    unsigned char mac[EVP_MAX_MD_SIZE];
    unsigned mac_len = 0;
    struct buf given;
    buf_init(&given, 256);
    int result = sign(key, signed_part, mac, &mac_len);
    if (result == 0) {
        result = codec_base64url_decode(signature, &given);
    }
    if (result == 0 && !jwt_secret_eq(span_make((const char *)mac, mac_len), buf_span(&given))) {
        result = ERR_INVAL;
    }
    buf_release(&given);
    return result == ERR_NOMEM ? result : (result == 0 ? 0 : ERR_INVAL);
}

static void copy_claim(const json_t *claims, const char *name, char *out, size_t room)
{
    const char *text = json_string_value(json_object_get(claims, name));
    (void)snprintf(out, room, "%s", text != NULL ? text : "");
}

static void read_claims(const json_t *claims, struct jwt *out)
{
    *out = (struct jwt){
        .issued_s = json_integer_value(json_object_get(claims, "iat")),
        .expires_s = json_integer_value(json_object_get(claims, "exp")),
    };
    copy_claim(claims, "aud", out->audience, sizeof(out->audience));
    copy_claim(claims, "appid", out->app, sizeof(out->app));
    copy_claim(claims, "tid", out->tenant, sizeof(out->tenant));
    size_t used = 0;
    size_t index = 0;
    json_t *role = NULL;
    json_array_foreach(json_object_get(claims, "roles"), index, role)
    {
        int len = snprintf(out->roles + used, sizeof(out->roles) - used, "%s%s",
                           used > 0 ? "," : "", json_string_value(role));
        used += len > 0 && (size_t)len < sizeof(out->roles) - used ? (size_t)len : 0;
    }
}

int jwt_read(struct span key, struct span token, struct jwt *out)
{
    if (token.len > TOKEN_BYTES_MAX) {
        return ERR_INVAL;
    }
    struct span rest = token;
    struct span header = span_cut(&rest, '.');
    struct span payload = span_cut(&rest, '.');
    if (header.len == 0 || payload.len == 0 || rest.len == 0) {
        return ERR_INVAL;
    }
    int result = verify(key, span_make(token.data, header.len + 1 + payload.len), rest);
    if (result != 0) {
        return result;
    }
    struct buf text;
    buf_init(&text, TOKEN_BYTES_MAX);
    json_t *claims = NULL;
    if (codec_base64url_decode(payload, &text) == 0) {
        claims = json_loadb(buf_span(&text).data, buf_len(&text), 0, NULL);
    }
    buf_release(&text);
    if (claims == NULL) {
        return ERR_INVAL;
    }
    read_claims(claims, out);
    json_decref(claims);
    return 0;
}

bool jwt_has_role(const struct jwt *jwt, const char *role)
{
    struct span roles = span_of(jwt->roles);
    while (roles.len > 0) {
        if (span_eq(span_cut(&roles, ','), span_of(role))) {
            return true;
        }
    }
    return false;
}
