# What a test waits for: userspace is up, and this kernel runs.
echo "DEBIAN: up $(uname -r)"
