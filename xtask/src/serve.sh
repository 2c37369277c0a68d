#!/bin/bash
# Serves one connection of the host in dom0. The request is a line, with bytes after it where the line says so; the
# answer is a line "STATUS LENGTH" and LENGTH bytes, except for `follow`, which sends the file for as long as the host
# listens.
#   sh SECONDS LENGTH      run LENGTH bytes as a bash script
#   put LENGTH PATH        write LENGTH bytes to PATH
#   get PATH               send the file
#   follow PATH            send the file and all that is added to it

cd /root || exit
read -r verb first rest || exit

# answer STATUS FILE
answer() {
    echo "$1 $(stat -c %s "$2")"
    cat "$2"
}

work=/tmp/.serve.$$
case $verb in
    sh)
        head -c "$rest" >$work.script
        # Its own session, so that a late script and all that it started can be ended together.
        setsid bash $work.script </dev/null >$work.out 2>&1 &
        script=$!
        sleep "$first" </dev/null >/dev/null 2>&1 &
        timer=$!
        wait -n -p ended $script $timer
        status=$?
        if [[ $ended == "$timer" ]]; then
            kill -KILL -- -$script
            status=timeout
        else
            kill $timer
        fi
        answer $status $work.out
        rm -f $work.script $work.out
        ;;
    put)
        { mkdir -p "$(dirname "$rest")" && head -c "$first" >"$rest"; } 2>$work.err
        answer $? $work.err
        rm -f $work.err
        ;;
    get)
        path=$first${rest:+ $rest}
        if [[ -f $path && -r $path ]]; then
            answer 0 "$path"
        else
            echo "no such file" >$work.err
            answer 1 $work.err
            rm -f $work.err
        fi
        ;;
    follow)
        # coreutils' tail learns of new bytes from inotify, at once.
        tail -n +1 -F "$first${rest:+ $rest}" 2>/dev/null &
        cat >/dev/null
        kill $!
        ;;
esac
