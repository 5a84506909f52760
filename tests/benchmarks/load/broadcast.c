/* What the kernel allows: a server of event streams that does nothing but send() the bytes it is given.
 *
 *     broadcast
 *
 * Prints the port of 127.0.0.1 that it listens on. A request is `GET /USER`, a number below 65536, and is answered with the
 * head of a stream that its connection's end ends. `USER LENGTH` on stdin, with spaces behind it a head of 16 bytes, and so
 * many bytes send these to all streams of the user: two reads, and one send() for each stream.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { USERS = 65536, FILES = 65536, BACKLOG = 4096, ORDER = 16, SIZE = 65536 };

static const char HEAD[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";

/* The streams of a user are a list: the first one's descriptor, and for each descriptor the next one's; 0 is its end. */
static int first[USERS], next[FILES];

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void drop(int fd, int *before)
{
    *before = next[fd];
    close(fd);
}

static void greet(int listener)
{
    static char request[SIZE];
    int yes = 1, length = 0, user = -1, fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return;
    while (length < SIZE - 1 && (length < 4 || memcmp(request + length - 4, "\r\n\r\n", 4) != 0)) {
        ssize_t got = recv(fd, request + length, SIZE - 1 - length, 0);
        if (got <= 0)
            break;
        length += got;
    }
    request[length] = '\0';
    if (sscanf(request, "GET /%d ", &user) != 1 || user < 0 || user >= USERS || fd >= FILES) {
        close(fd);
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    send(fd, HEAD, sizeof HEAD - 1, MSG_NOSIGNAL);
    next[fd] = first[user];
    first[user] = fd;
}

/* Close what its reader has closed: send() would notice only at the second event. */
static void sweep(void)
{
    char byte;
    for (int user = 0; user < USERS; user++)
        for (int *at = &first[user]; *at;)
            if ((errno = 0, recv(*at, &byte, 1, MSG_PEEK | MSG_DONTWAIT)) == 0 || errno == ECONNRESET)
                drop(*at, at);
            else
                at = &next[*at];
}

static void send_to_all(int user, const char *event, size_t length)
{
    for (int *at = &first[user]; *at;)
        if (send(*at, event, length, MSG_NOSIGNAL) < 0)
            drop(*at, at);
        else
            at = &next[*at];
}

/* Read so many bytes, or end where there are no more. */
static void read_all(char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t got = read(STDIN_FILENO, bytes, length);
        if (got <= 0)
            exit(0);
        bytes += got;
        length -= got;
    }
}

int main(void)
{
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof own;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&own, size) < 0 || listen(listener, BACKLOG) < 0 ||
        getsockname(listener, (struct sockaddr *)&own, &size) < 0)
        fail("listening");
    printf("%d\n", ntohs(own.sin_port));
    fflush(stdout);

    static char order[ORDER + 1], event[SIZE];
    struct pollfd sources[] = {{.fd = listener, .events = POLLIN}, {.fd = STDIN_FILENO, .events = POLLIN}};
    bool come = false;
    int user;
    size_t length;
    for (;;) {
        if (poll(sources, 2, -1) < 0)
            fail("poll");
        if (sources[0].revents) {
            greet(listener);
            come = true;
            continue;
        }
        if (come)
            sweep();
        come = false;
        read_all(order, ORDER);
        if (sscanf(order, "%d %zu", &user, &length) != 2 || user < 0 || user >= USERS || length > SIZE) {
            fprintf(stderr, "expected USER LENGTH, got %s\n", order);
            return 1;
        }
        read_all(event, length);
        send_to_all(user, event, length);
    }
}
